# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The cost model ``latency``: few chains of a layer are timed where the network will run, the others lie between."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from lowrank_hooks import CostContext, StageShape
from lowrank_plugin.costs.counted import Chain
from lowrank_plugin.costs.interpolation import MonotoneGrid
from lowrank_plugin.costs.runtimes import Runtime, make_runtime
from lowrank_plugin.costs.timings import Timings

Family = tuple[tuple[object, ...], ...]

POINTS = {1: 6, 2: 4, 3: 3}
"""Widths timed on each axis of a grid, by the number of free widths of a chain; two where there are more."""

MOST_WEIGHTS = 1 << 26
"""Weights of the chains that are timed side by side."""


def measure(context: CostContext) -> LatencyModel:
    """Time layers and networks in the runtime that the settings name.

    :param context: the network.
    :raises ConfigurationError: where that runtime is not installed or lacks the precision.
    """
    return LatencyModel(context, make_runtime(context.runtime, context.model))


class LatencyModel:
    """Milliseconds; times of layers are kept on disk.

    :param context: the network.
    :param runtime: where it runs.
    """

    def __init__(self, context: CostContext, runtime: Runtime) -> None:
        self._context, self._runtime = context, runtime
        self._timings = Timings(runtime.facts)

    def facts(self) -> Mapping[str, str]:
        """Backend, precision, version, processor and threads."""
        return dict(self._runtime.facts)

    def networks(self, networks: Sequence[nn.Module]) -> Sequence[float]:
        """Milliseconds of whole networks, measured side by side."""
        return self._runtime.networks(networks, self._context.example)

    def layer(self, name: str, chains: Sequence[Sequence[StageShape]]) -> list[float]:
        """Milliseconds of a layer with each of the chains in its place.

        Chains of one family, with as many stages of the same kernels, differ in the widths between the stages. Few
        chains are all timed; of many, those on a grid of widths, and the others are interpolated so that a wider one
        never costs less.

        :param name: the layer.
        :param chains: the chains; an empty one is the layer itself.
        """
        asked = [tuple(chain) for chain in chains]
        totals = [0.0] * len(asked)
        for shape, count in Counter(tuple(shape) for shape in self._context.inputs[name]).items():
            costs = self._at(name, shape, asked)
            totals = [total + count * costs[chain] for total, chain in zip(totals, asked, strict=True)]
        return totals

    def _at(self, name: str, shape: tuple[int, ...], asked: Sequence[Chain]) -> dict[Chain, float]:
        families: dict[Family, list[Chain]] = {}
        for chain in dict.fromkeys(asked):
            families.setdefault(family(chain), []).append(chain)
        grids = {key: grid(chains) for key, chains in families.items()}
        wanted = [chain for chains in grids.values() for chain in chains.values()]
        times = self._timed(name, shape, wanted)
        costs: dict[Chain, float] = {}
        for key, chains in families.items():
            if set(chains) == set(grids[key].values()):
                costs.update({chain: times[chain] for chain in chains})
                continue
            axes = [sorted(set(axis)) for axis in zip(*grids[key], strict=True)]
            values = torch.tensor([times[grids[key][point]] for point in itertools.product(*axes)], dtype=torch.float64)
            between = MonotoneGrid.of(axes, values.reshape([len(axis) for axis in axes]))
            costs.update({chain: between(widths(chain)) for chain in chains})
        return costs

    def _timed(self, name: str, shape: tuple[int, ...], wanted: Sequence[Chain]) -> dict[Chain, float]:
        keys = {chain: self._key(name, shape, chain) for chain in dict.fromkeys([(), *wanted])}
        missing = [chain for chain, key in keys.items() if chain and key not in self._timings]
        if keys[()] not in self._timings or missing:
            for batch in _batches(missing):
                self._measure(name, shape, [(), *batch], keys)
        return {chain: self._timings[key] for chain, key in keys.items()}

    def _measure(self, name: str, shape: tuple[int, ...], chains: Sequence[Chain], keys: Mapping[Chain, str]) -> None:
        modules = [self._context.chain(name, chain) for chain in chains]
        like = next(modules[0].parameters())
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like)
        times = self._runtime.layers(modules, inputs)
        # the machine may be slower or faster now than when other chains of this layer were timed: the layer tells
        scale = self._timings[keys[()]] / times[0] if keys[()] in self._timings else 1.0
        self._timings.update({keys[chain]: scale * time for chain, time in zip(chains, times, strict=True)})

    def _key(self, name: str, shape: tuple[int, ...], chain: Chain) -> str:
        module = self._context.model.get_submodule(name)
        geometry = {
            key: value
            for key, value in sorted(vars(module).items())
            if not key.startswith("_") and key != "training" and isinstance(value, int | str | tuple)
        }
        stages = " > ".join(f"{s.in_channels}-{s.out_channels} {s.kernel_size} /{s.groups}" for s in chain) or "dense"
        return f"{type(module).__qualname__} {geometry} on {shape}: {stages}"


def family(chain: Chain) -> Family:
    """What chains have in common that differ only in the widths between their stages.

    :param chain: the sizes of the stages.
    """
    return tuple(
        (stage.kernel_size, stage.out_channels // stage.in_channels if _depthwise(stage) else -stage.groups)
        for stage in chain
    )


def widths(chain: Chain) -> tuple[int, ...]:
    """The widths between the stages that may be chosen; a depthwise stage is as wide as what enters it.

    >>> widths((StageShape(8, 64), StageShape(8, 8, (3,), 8), StageShape(64, 8)))
    (8,)

    :param chain: the sizes of the stages.
    """
    return tuple(stage.out_channels for stage in chain[:-1] if not _depthwise(stage))


def grid(chains: Sequence[Chain]) -> dict[tuple[int, ...], Chain]:
    """The chains of one family to be timed, by their widths: all of few, otherwise those on a grid.

    :param chains: the chains asked for.
    """
    points = [widths(chain) for chain in chains]
    axes = [_spread(sorted(set(axis)), POINTS.get(len(points[0]), 2)) for axis in zip(*points, strict=True)]
    if len(chains) <= math.prod(len(axis) for axis in axes):
        return dict(zip(points, chains, strict=True))
    return {point: with_widths(chains[0], point) for point in itertools.product(*axes)}


def with_widths(chain: Chain, point: Sequence[int]) -> Chain:
    """A chain of the same family.

    >>> with_widths((StageShape(8, 64), StageShape(32, 8)), (4,))
    (StageShape(out_channels=4, in_channels=64, kernel_size=(), groups=1),
     StageShape(out_channels=32, in_channels=4, kernel_size=(), groups=1))

    :param chain: one of the family.
    :param point: the widths.
    """
    left, stages, inputs = iter(point), [], chain[0].in_channels
    for stage in chain:
        if _depthwise(stage):
            outputs, groups = inputs * (stage.out_channels // stage.in_channels), inputs
        else:
            outputs, groups = stage.out_channels if stage is chain[-1] else next(left), stage.groups
        stages.append(replace(stage, in_channels=inputs, out_channels=outputs, groups=groups))
        inputs = outputs
    return tuple(stages)


def _depthwise(stage: StageShape) -> bool:
    return stage.groups == stage.in_channels > 1


def _spread(values: Sequence[int], count: int) -> list[int]:
    """Some of rising values: the first, the last, and those nearest to half, a quarter and so on of the last."""
    if len(values) <= count:
        return list(values)
    targets = [values[0], *(values[-1] / 2**power for power in range(count - 1))]
    return sorted({min(values, key=lambda value: abs(value - target)) for target in targets})


def _batches(chains: Sequence[Chain]) -> list[list[Chain]]:
    """Chains in groups that fit into memory side by side; one group at least."""
    batches: list[list[Chain]] = [[]]
    weights = 0
    for chain in chains:
        weights += sum(stage.parameters for stage in chain)
        if weights > MOST_WEIGHTS and batches[-1]:
            batches.append([])
            weights = sum(stage.parameters for stage in chain)
        batches[-1].append(chain)
    return batches
