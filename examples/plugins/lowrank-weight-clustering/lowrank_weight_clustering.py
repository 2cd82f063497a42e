# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Weights that share a few values."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_hooks import CompressionAlgorithmRecord, CompressionContext, hookimpl

SCHEMA = {
    "type": "object",
    "properties": {
        "clusters": {"description": "a whole number from 2 to 256", "type": "integer", "minimum": 2, "maximum": 256},
        "steps": {"description": "a whole number from 1", "type": "integer", "minimum": 1},
    },
    "additionalProperties": False,
}


def cluster(weight: Tensor, clusters: int, steps: int = 20) -> Tensor:
    """Round every entry to the nearest of a few values: k-means in one dimension, started at the quantiles.

    >>> cluster(torch.tensor([0.0, 0.1, 0.9, 1.0]), 2)
    tensor([0.0500, 0.0500, 0.9500, 0.9500])

    :param weight: any tensor.
    :param clusters: how many values may be left.
    :param steps: of k-means.
    :return: a tensor of the same shape.
    """
    values = weight.flatten().double().sort().values
    middles = (torch.arange(clusters, dtype=torch.float64) + 0.5) / clusters * len(values)
    centres = values[middles.long()]
    for _ in range(steps):
        nearest = torch.bucketize(values, (centres[1:] + centres[:-1]) / 2)
        sums = torch.zeros_like(centres).index_add_(0, nearest, values)
        counts = torch.bincount(nearest, minlength=clusters)
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return centres[torch.bucketize(weight.double(), (centres[1:] + centres[:-1]) / 2)].to(weight)


def apply(
    model: nn.Module, section: Mapping[str, Any], context: CompressionContext
) -> tuple[nn.Module, dict[str, Any]]:
    """Cluster the weights of all convolutions and linear layers.

    :param model: the model; it is not changed.
    :param section: the section of the config.
    :param context: not needed.
    :return: the model with shared values, and how many of them each layer has.
    """
    clustered = copy.deepcopy(model)
    left = {}
    with torch.no_grad():
        for name, module in clustered.named_modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                module.weight.copy_(cluster(module.weight, section.get("clusters", 32), section.get("steps", 20)))
                left[name] = len(module.weight.unique())
    return clustered, {"values": left}


@hookimpl
def lowrank_compression_algorithms() -> Iterator[CompressionAlgorithmRecord]:
    """Offer the algorithm."""
    yield CompressionAlgorithmRecord(
        "weight_clustering",
        apply,
        SCHEMA,
        after=frozenset({"lowrank"}),
        before=frozenset({"quantization"}),
        summary="weights that share a few values",
    )
