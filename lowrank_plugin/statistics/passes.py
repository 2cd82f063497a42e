# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What statistics need while they are collected, known beforehand, and collected in several passes where it is much."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lowrank_plugin.data.batches import batch_size
from lowrank_plugin.layers.survey import Layer
from lowrank_plugin.statistics import file
from lowrank_plugin.statistics.collection import ENOUGH, Observed, correlated, product_bytes
from lowrank_plugin.statistics.vectors import Vectors

logger = logging.getLogger(__name__)

GIGABYTE = 10**9
OVERHEAD = 1.05
"""What an allocator takes for tensors, as a multiple of their bytes."""


@dataclass(frozen=True)
class Need:
    """What one layer's statistics need, in bytes.

    :param held: until the last batch.
    :param passing: while a batch goes through the layer.
    """

    held: int
    passing: int


def need(layer: Layer, module: nn.Module, samples: int, largest: int, positions: float) -> Need:
    """Predict what a layer's statistics need.

    :param layer: how it is seen, and the sizes of its maps in the example run.
    :param module: its module, for its windows.
    :param samples: how many samples there will be in all.
    :param largest: how many of them are in the largest batch.
    :param positions: patches wanted, as a multiple of the width of the covariance.
    """
    width = layer.shape.in_channels * layer.shape.taps
    before, after = layer.calls[0]
    maps = largest * math.prod(before[1:])
    geometry = correlated(layer, module, samples, positions)
    if geometry is not None:
        # maps with the shift taken off, the same with channels last, two slices of them, one product
        maps = max(maps, ENOUGH * layer.shape.groups * layer.shape.in_channels)
        return Need(geometry.bytes, 4 * (4 * maps + layer.shape.groups * layer.shape.in_channels**2))
    outputs = largest * math.prod(after[1:]) // (layer.shape.groups * layer.shape.out_channels)
    if (count := Vectors.expected(layer, samples, positions)) is not None:
        waiting = min(count, ENOUGH + outputs)
        # both are there twice for a moment, in parts and put together
        return Need(8 * count * layer.shape.groups * width, 4 * maps + 8 * waiting * layer.shape.groups * width)
    rows = max(ENOUGH, min(outputs, math.ceil(positions * width * largest / samples)))
    drawn = 4 * rows * layer.shape.groups * width
    # the padded input, patches drawn and with the shift taken off, a product of up to half of the columns
    return Need(product_bytes(layer) + 4 * ENOUGH * width, 4 * maps + 3 * drawn + product_bytes(layer) // 8)


def peak(needs: Mapping[str, Need], names: Sequence[str]) -> int:
    """Bytes that collecting some layers at once needs beyond what running the model does."""
    tensors = sum(needs[name].held for name in names) + max((needs[name].passing for name in names), default=0)
    return math.ceil(OVERHEAD * tensors)


@dataclass(frozen=True)
class Passes:
    """Which layers are looked at together.

    :param groups: their names, one group for each pass over the data.
    :param peak: bytes that the largest pass needs.
    :param refusals: layers too large for any pass, with the reason.
    """

    groups: list[list[str]]
    peak: int
    refusals: dict[str, str]


def divide(
    model: nn.Module, layers: Mapping[str, Layer], batches: Sequence[object], positions: float, memory_gb: float
) -> Passes:
    """Group layers so that no group needs more than is allowed.

    :param model: the network that the layers are of.
    :param layers: the layers, in the order of the groups.
    :param batches: model inputs.
    :param positions: patches wanted, as a multiple of the width of the covariance.
    :param memory_gb: gigabytes that one pass may need.
    """
    sizes = [batch_size(batch) for batch in batches]
    needs: dict[str, Need] = {}
    refusals = {}
    for name, layer in layers.items():
        each = need(layer, model.get_submodule(name), sum(sizes), max(sizes), positions)
        if (needed := peak({name: each}, [name])) > memory_gb * GIGABYTE:
            refusals[name] = f"its statistics need {needed / GIGABYTE:.3g} GB, but memory_gb is {memory_gb:g}"
        else:
            needs[name] = each
    groups = grouped(needs, memory_gb * GIGABYTE)
    most = max((peak(needs, group) for group in groups), default=0)
    logger.info("Statistics of %d layers: %d passes, %.3g GB.", len(needs), len(groups), most / GIGABYTE)
    return Passes(groups, most, refusals)


def grouped(needs: Mapping[str, Need], limit: float) -> list[list[str]]:
    """Names in groups that keep to a limit, in order.

    >>> grouped({"a": Need(3, 1), "b": Need(3, 1), "c": Need(2, 1)}, limit=8)
    [['a', 'b'], ['c']]

    :param needs: by layer name, none above the limit.
    :param limit: in bytes.
    """
    groups: list[list[str]] = []
    for name in needs:
        if groups and peak(needs, [*groups[-1], name]) <= limit:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def collect_in_passes(
    collect: Callable[[list[str]], Mapping[str, Observed]], groups: Sequence[list[str]]
) -> dict[str, Observed]:
    """Collect group after group. Of more than one group the sums go to files and are read when they are needed.

    :param collect: runs the model and looks at some layers.
    :param groups: the names of the layers.
    """
    if len(groups) == 1:
        return dict(collect(groups[0]))
    found: dict[str, Observed] = {}
    # a file's tensors are mapped into memory, so they stay readable when its name is gone
    with tempfile.TemporaryDirectory(prefix="lowrank-", ignore_cleanup_errors=True) as folder:
        for index, group in enumerate(groups):
            seen, path = collect(group), Path(folder) / f"{index}.safetensors"
            file.write(path, seen)
            stored, _, _ = file.read(path)
            found.update(
                (name, Observed(stored[name].patches, each.outputs, each.batch_numbers)) for name, each in seen.items()
            )
    return found
