# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Networks as OpenVINO runs them: size, accuracy and latency."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from common.processor import avoid_missing_tiles
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Size:
    """How large a network is.

    :param parameters: numbers in weights, biases and normalisation layers.
    :param macs: multiply-accumulates for one sample.
    """

    parameters: int
    macs: int


@dataclass(frozen=True)
class Fidelity:
    """How well a network does.

    :param top1: per cent of the samples whose class it finds.
    :param agreement: per cent of them where it says what the original says.
    :param kl: mean of KL(original || network) of the outputs, in nats.
    """

    top1: float
    agreement: float
    kl: float


def size(model: nn.Module, sample: Tensor) -> Size:
    """Count a network that is not quantized.

    :param model: the network.
    :param sample: one sample, with a batch dimension of 1.
    """
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).eval()(sample)
    return Size(sum(each.numel() for each in model.parameters()), counter.get_total_flops() // 2)


def save_openvino(model: nn.Module, sample: Tensor, path: Path) -> int:
    """Write a network as OpenVINO's .xml and .bin, for the exact shape of the sample.

    :param model: the network, quantized or not.
    :param sample: one sample, with a batch dimension of 1.
    :param path: of the .xml file.
    :return: bytes of both files.
    """
    with warnings.catch_warnings():
        # OpenVINO traces the model with torch.jit, which torch has deprecated.
        warnings.simplefilter("ignore")
        converted = ov.convert_model(copy.deepcopy(model).eval(), example_input=sample, input=[tuple(sample.shape)])
    path.parent.mkdir(parents=True, exist_ok=True)
    # Half-precision storage is off: it would halve the file of the original only and hide what int8 saves.
    ov.save_model(converted, path, compress_to_fp16=False)
    return path.stat().st_size + path.with_suffix(".bin").stat().st_size


def compile_openvino(path: Path) -> ov.CompiledModel:
    """Compile a saved network for lowest latency on the CPU.

    What is not int8 is computed in float32, also where the processor would rather round it to bfloat16.

    :param path: of the .xml file.
    """
    avoid_missing_tiles()
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    return ov.Core().compile_model(path, "CPU", hints)


def outputs(network: ov.CompiledModel, samples: Iterable[tuple[Tensor, int]]) -> np.ndarray:
    """Return what a network says to each sample, [N, classes].

    :param network: the compiled network.
    :param samples: inputs without a batch dimension, and classes, which are not used.
    """
    request = network.create_infer_request()
    return np.stack([np.array(request.infer([image.numpy()[None]])[0][0]) for image, _ in samples])


def fidelity(found: np.ndarray, wanted: np.ndarray, labels: Sequence[int]) -> Fidelity:
    """Compare outputs with those of the original network.

    :param found: outputs before the softmax, [N, classes].
    :param wanted: those of the original.
    :param labels: classes, [N].
    """
    logs, references = (torch.from_numpy(each).double().log_softmax(1) for each in (found, wanted))
    kl = functional.kl_div(logs, references, log_target=True, reduction="batchmean")
    right, same = found.argmax(1) == np.asarray(labels), found.argmax(1) == wanted.argmax(1)
    return Fidelity(100 * float(right.mean()), 100 * float(same.mean()), float(kl))


def latencies(networks: Mapping[str, ov.CompiledModel], sample: Tensor, seconds: float = 12.0) -> dict[str, float]:
    """Return the median time of one inference, in milliseconds.

    The networks take turns, a few inferences each, so that whatever else the machine does meets all of them alike.

    :param networks: the compiled networks.
    :param sample: one sample, with a batch dimension of 1.
    :param seconds: how long to measure, in all.
    """
    inputs = [sample.numpy()]
    requests = {name: network.create_infer_request() for name, network in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in networks}
    for request in requests.values():
        _time(request, inputs, 10)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not all(times.values()):
        for name, request in requests.items():
            # The first inference after another network has run finds cold caches; it is left out.
            times[name] += _time(request, inputs, 6)[1:]
    return {name: 1000 * statistics.median(each) for name, each in times.items()}


def _time(request: ov.InferRequest, inputs: list[np.ndarray], count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        request.infer(inputs)
        times.append(time.perf_counter() - start)
    return times
