# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Tiny networks, one for each geometry, in the versions that are exported."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# NNCF reads it on import; tests must not report usage.
os.environ.setdefault("NNCF_CI", "1")

import nncf
import torch
from nncf.torch.quantization.layers import SymmetricQuantizer
from torch import Tensor, nn

import lowrank_nncf

VERSIONS = ("low-rank", "low-rank + pruning", "low-rank + int8")


@dataclass(frozen=True)
class Geometry:
    """A layer and how it is factorised.

    :param make: makes the layer, from 8 channels to 16.
    :param rank: its rank.
    :param decomposer: of the chain.
    """

    make: Callable[[], nn.Module]
    rank: list[int]
    decomposer: str


GEOMETRIES = {
    "strided": Geometry(lambda: nn.Conv2d(8, 16, 3, stride=2, padding=1), [8, 8], "tucker2"),
    "dilated": Geometry(lambda: nn.Conv2d(8, 16, 3, padding=2, dilation=2, bias=False), [8], "svd"),
    "grouped": Geometry(lambda: nn.Conv2d(8, 16, 3, padding=1, groups=2), [6], "svd"),
    "separated": Geometry(lambda: nn.Conv2d(8, 16, (3, 5), stride=(1, 2), padding=(1, 2)), [8], "spatial_svd"),
    "depthwise": Geometry(lambda: nn.Conv2d(8, 16, 3, stride=2, padding=1), [12], "cpd"),
    "conv1d": Geometry(lambda: nn.Conv1d(8, 16, 5, stride=2, padding=2), [8], "svd"),
    "linear": Geometry(lambda: nn.Linear(8, 16), [4], "svd"),
}


class Network(nn.Module):
    """A layer between two others.

    :param layer: takes 8 channels and gives 16.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.axes = len(getattr(layer, "kernel_size", ()))
        first = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d}[self.axes]
        self.first = first(4, 8, *[1] * (self.axes > 0))
        self.layer = layer
        self.last = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4, *size] to [B, 10]."""
        x = torch.relu(self.layer(torch.relu(self.first(x))))
        return self.last(x.mean(dim=tuple(range(2, 2 + self.axes))) if self.axes else x)


@functools.cache
def exported(geometry: str) -> tuple[dict[str, lowrank_nncf.CompressionController], Tensor]:
    """The versions of a network, in eval mode, and a batch for it."""
    layer = GEOMETRIES[geometry]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(layer.make()).eval()
        samples = torch.randn(64, 4, *[9] * network.axes)
    dataset = nncf.Dataset(list(samples.split(8)))
    section = {"algorithm": "lowrank", "ranks": {"layer": layer.rank}, "decomposers": [layer.decomposer]}
    lowrank = compressed(network, section, dataset)
    controllers = (
        lowrank,
        compressed(lowrank.model, {"algorithm": "magnitude_sparsity", "sparsity_init": 0.3}, dataset),
        compressed(lowrank.model, {"algorithm": "quantization", "overflow_fix": "enable"}, dataset),
    )
    # The overflow fix doubles the range of a channel's weights, which puts the largest of them exactly half-way between
    # two steps; rounding errors would then decide in each runtime which one it becomes.
    with torch.no_grad():
        for module in controllers[-1].model.modules():
            if isinstance(module, SymmetricQuantizer):
                module.scale *= 1.003
    return dict(zip(VERSIONS, controllers, strict=True)), samples[:8]


def compressed(model: nn.Module, section: dict[str, Any], dataset: nncf.Dataset) -> lowrank_nncf.CompressionController:
    """The controller of a model compressed by one section."""
    return lowrank_nncf.create_compressed_model(model, {"compression": section}, dataset)[0]
