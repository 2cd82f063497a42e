# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Where a compressed network may run, and what upstream cannot do there yet."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch
from export.networks import GEOMETRIES, VERSIONS
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from torch import Tensor
from torch._dynamo.exc import InternalTorchDynamoError
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.onnx._internal.exporter._errors import TorchExportError

from lowrank_nncf import CompressionController

LOWRANK, PRUNED, INT8 = VERSIONS


@dataclass(frozen=True)
class Runtime:
    """A way to run a network.

    :param run: of the controller, a batch and a folder for files; returns the outputs.
    :param versions: those that it is meant for.
    :param geometries: those that it is tried on.
    """

    run: Callable[[CompressionController, Tensor, Path], Tensor]
    versions: tuple[str, ...] = VERSIONS
    geometries: tuple[str, ...] = tuple(GEOMETRIES)


@dataclass(frozen=True)
class Failure:
    """What cannot be done today; a test fails as soon as it can.

    :param error: that it ends with; an AssertionError where the outputs are wrong.
    :param match: in its message.
    :param reason: for the table.
    :param geometries: those it concerns.
    :param processor: a flag of the processors that it is seen on.
    """

    error: type[Exception]
    match: str
    reason: str
    geometries: tuple[str, ...] = tuple(GEOMETRIES)
    processor: str = ""


def _exported(controller: CompressionController, batch: Tensor, folder: Path) -> Tensor:
    return torch.export.export(_model(controller), (batch,)).module()(batch)


def _compiled(controller: CompressionController, batch: Tensor, folder: Path) -> Tensor:
    torch._dynamo.reset()
    return torch.compile(_model(controller))(batch)


def _onnxruntime(path: Path, batch: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: batch.numpy()})[0])


def _dynamo(controller: CompressionController, batch: Tensor, folder: Path) -> Tensor:
    torch.onnx.export(_model(controller), (batch,), folder / "model.onnx", dynamo=True, verbose=False)
    return _onnxruntime(folder / "model.onnx", batch)


def _openvino(path: Path, batch: Tensor) -> Tensor:
    network = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(np.array(network([batch.numpy()])[0]))


def _file(name: str, run: Callable[[Path, Tensor], Tensor], **options: bool) -> Callable[..., Tensor]:
    def write_and_run(controller: CompressionController, batch: Tensor, folder: Path) -> Tensor:
        controller.export_model(folder / name, **options)
        return run(folder / name, batch)

    return write_and_run


def _model(controller: CompressionController) -> torch.nn.Module:
    return copy.deepcopy(controller.model).eval()


RUNTIMES = {
    "`torch.export`": Runtime(_exported),
    # one geometry, because the C++ compiler takes half a minute for it
    "`torch.compile`, inductor": Runtime(_compiled, geometries=("depthwise",)),
    'ONNX Runtime, `export_model("m.onnx")`': Runtime(_file("model.onnx", _onnxruntime)),
    'ONNX Runtime, `export_model("m.onnx", standard_ops=True)`': Runtime(
        _file("model.onnx", _onnxruntime, standard_ops=True), (INT8,)
    ),
    "ONNX Runtime, `torch.onnx.export(dynamo=True)`": Runtime(_dynamo, geometries=("strided", "conv1d", "linear")),
    'OpenVINO, `export_model("m.xml")`': Runtime(_file("model.xml", _openvino)),
    'OpenVINO, `export_model("m.onnx")`': Runtime(_file("model.onnx", _openvino)),
    'OpenVINO, `export_model("m.onnx", standard_ops=True)`': Runtime(
        _file("model.onnx", _openvino, standard_ops=True), (INT8,)
    ),
}
"""By the name that the table has for it."""

_EXPORT, _COMPILE, _ONNX, _, _DYNAMO, _, _OPENVINO_ONNX, _OPENVINO_STANDARD = RUNTIMES

_WRONG = Failure(
    AssertionError,
    "Mismatched",
    "On processors with VNNI, OpenVINO computes wrong numbers for an int8 `nn.Linear` without bias on inputs "
    "[batch, features], such as the first of a chain, when it comes from an `.onnx` file; use `.xml` there",
    geometries=("linear",),
    processor="vnni",
)

FAILURES = {
    (INT8, _EXPORT): Failure(
        GuardOnDataDependentSymNode,
        "Could not guard on data-dependent expression",
        "NNCF's quantizers branch on the value of a buffer, which `torch.export` cannot trace",
    ),
    (INT8, _COMPILE): Failure(
        InternalTorchDynamoError,
        "___get_torch_function_mode_stack_at",
        "TorchDynamo fails in NNCF's function mode",
    ),
    (INT8, _ONNX): Failure(
        Fail,
        r"FakeQuantize\(-1\) is not a registered function",
        "NNCF's quantizers are written as OpenVINO's FakeQuantize, which ONNX Runtime does not have",
    ),
    (INT8, _DYNAMO): Failure(
        TorchExportError,
        "Failed to export the model with torch.export",
        "This exporter begins with `torch.export`",
    ),
    (INT8, _OPENVINO_ONNX): _WRONG,
    (INT8, _OPENVINO_STANDARD): _WRONG,
}
"""By version and runtime."""
