# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Times in OpenVINO, one inference at a time on the CPU."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lowrank_plugin.costs.stopwatch import in_bursts, processor
from lowrank_plugin.support.copying import copied

PATIENCE, MOST_INFERENCES = 40, 150
"""Inferences without anything getting faster after which timing ends; and the most there are."""
RESOLUTION = 1e-3
"""Of OpenVINO's counters, in milliseconds; what takes less is said to take nothing."""
_HINTS = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
_QUANTIZER = "quantizer of "
_COMPUTING = {"Convolution", "GroupConvolution", "MatMul"}


class OpenVinoRuntime:
    """OpenVINO on the CPU, compiled for latency.

    For ``"int8"``, quantizers with made-up ranges are put before every convolution and matrix product with constant
    weights: the time hardly depends on the ranges.

    :param precision: ``"fp32"`` or ``"int8"``.
    """

    def __init__(self, precision: str = "fp32") -> None:
        self._core, self._precision = ov.Core(), precision
        self.facts = {
            "backend": "openvino",
            "precision": precision,
            "version": ov.__version__,
            "processor": processor(),
            "threads": str(self._core.get_property("CPU", "INFERENCE_NUM_THREADS") or "all"),
        }

    def layers(self, modules: Sequence[nn.Module], inputs: Tensor) -> list[float]:
        """The sums over each module's nodes of the least that OpenVINO's own counters say of them.

        All modules are branches of one network. So each finds its weights cold, as in a network, nothing is spent on
        starting an inference, and what converts the layout of the network's input and outputs does not count.
        """
        compiled = self._compiled(_SideBySide(modules), inputs, {"PERF_COUNT": "YES"})
        request, data = compiled.create_infer_request(), _arrays(inputs)
        least: dict[str, float] = {}
        patience = PATIENCE
        for _ in range(MOST_INFERENCES):
            request.infer(data)
            before = sum(least.values())
            for node in request.get_profiling_info():
                # other programs only ever add to a time
                milliseconds = 1000 * node.real_time.total_seconds()
                least[node.node_name] = min(milliseconds, least.get(node.node_name, milliseconds))
            patience = patience - 1 if 0.99 * before <= sum(least.values()) <= before else PATIENCE
            if not patience:
                break
        return _totals(least, len(modules))

    def networks(self, networks: Sequence[nn.Module], example: object) -> list[float]:
        """Interleaved medians of bursts."""
        requests = [self._compiled(network, example).create_infer_request() for network in networks]
        data = _arrays(example)
        return in_bursts([partial(each.infer, data) for each in requests])

    def _compiled(
        self, module: nn.Module, example: object, options: Mapping[str, str] | None = None
    ) -> ov.CompiledModel:
        with warnings.catch_warnings():
            # OpenVINO traces the model with torch.jit, which torch has deprecated
            warnings.simplefilter("ignore")
            converted = ov.convert_model(
                copied(module).eval().cpu().float(), example_input=pytree.tree_map(_as_float, example)
            )
        arrays = _arrays(example)
        names = arrays if isinstance(arrays, Mapping) else range(len(arrays))
        converted.reshape({name: list(arrays[name].shape) for name in names})
        if self._precision == "int8":
            _quantize(converted)
        return self._core.compile_model(converted, "CPU", {**_HINTS, **(options or {})})


class _SideBySide(nn.Module):
    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(modules)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(branch(inputs) for branch in self.branches)


def _as_float(leaf: object) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.detach().cpu().float() if leaf.is_floating_point() else leaf.cpu()


def _arrays(example: object) -> Any:
    """The tensors of an example: by name where it is a dict, otherwise in their order."""
    if isinstance(example, Mapping):
        return {name: _as_float(value).numpy() for name, value in example.items() if isinstance(value, Tensor)}
    return [_as_float(leaf).numpy() for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]


def _totals(times: Mapping[str, float], count: int) -> list[float]:
    """Times by branch: of its nodes, but not of what brings their output into the order of the result."""
    totals = [0.0] * count
    for node, milliseconds in times.items():
        branch = re.match(r"__module\.branches\.(\d+)[./]", node)
        if branch and "_Result_" not in node:
            totals[int(branch[1])] += milliseconds
    return [max(total, RESOLUTION) for total in totals]


def _quantize(model: ov.Model) -> None:
    """Put quantizers on both operands of what can be computed in int8."""
    quantized = set()
    for node in model.get_ordered_ops():
        weight = _constant(node.input_value(1)) if node.get_type_name() in _COMPUTING else None
        if weight is None:
            continue
        # ranges as NNCF chooses them for both signs: 255 steps for weights, 256 for activations
        for value, levels, high in ((weight, 255, 1.0), (node.input_value(0), 256, 127 / 128)):
            key = value.get_node().get_friendly_name(), value.get_index()
            if key in quantized or key[0].startswith(_QUANTIZER):
                continue
            quantized.add(key)
            consumers = list(value.get_target_inputs())
            ends = [np.float32(-1), np.float32(high)] * 2
            quantizer = ops.fake_quantize(value, *ends, levels)
            quantizer.set_friendly_name(f"{_QUANTIZER}{key[0]}")
            for consumer in consumers:
                consumer.replace_source_output(quantizer.output(0))


def _constant(value: ov.Output) -> ov.Output | None:
    """The constant that a weight is made from."""
    while value.get_node().get_type_name() in ("Convert", "Reshape", "Transpose", "Unsqueeze"):
        value = value.get_node().input_value(0)
    return value if value.get_node().get_type_name() == "Constant" else None
