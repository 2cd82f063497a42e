# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Networks as OpenVINO runs them: size, accuracy and latency."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
from common.processor import avoid_missing_tiles
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Size:
    """How large a network is.

    :param parameters: numbers in weights, biases and normalisation layers.
    :param macs: multiply-accumulates for one sample.
    """

    parameters: int
    macs: int


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


def accuracy(network: ov.CompiledModel, samples: Iterable[tuple[Tensor, int]]) -> float:
    """Return the share of samples, in per cent, whose class the network finds.

    :param network: the compiled network.
    :param samples: inputs without a batch dimension, and classes.
    """
    request = network.create_infer_request()
    right = [int(request.infer([image.numpy()[None]])[0].argmax()) == int(label) for image, label in samples]
    return 100 * float(np.mean(right))


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
