# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The cost models that are counted from the sizes of a chain of convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lowrank_hooks import StageShape
from lowrank_plugin.layers.survey import Layer


def macs(stages: Sequence[StageShape], positions: Sequence[int], groups: int) -> float:
    """Multiply-accumulates.

    >>> macs([StageShape(8, 3, (3, 3))], [100], 1)
    21600.0

    :param stages: the sizes of the chain, for one group.
    :param positions: output positions each stage computes.
    :param groups: groups of the layer.
    """
    return float(groups * sum(stage.parameters * count for stage, count in zip(stages, positions, strict=True)))


def parameters(stages: Sequence[StageShape], positions: Sequence[int], groups: int) -> float:
    """Number of weights.

    >>> parameters([StageShape(8, 3, (3, 3))], [100], 1)
    216.0

    :param stages: the sizes of the chain, for one group.
    :param positions: ignored.
    :param groups: groups of the layer.
    """
    return float(groups * sum(stage.parameters for stage in stages))


Chain = tuple[StageShape, ...]
"""The sizes of a chain for one group of its layer; empty for the layer itself."""


def sizes(layer: Layer, module: nn.Module, chain: Chain) -> tuple[Chain, tuple[int, ...], int]:
    """The sizes of a chain, the positions of its stages and the groups of the layer, as cost models want them.

    :param layer: the layer.
    :param module: its module, for its geometry.
    :param chain: the sizes of the stages; empty for the layer itself.
    """
    shape = layer.shape
    stages = chain or (StageShape(shape.out_channels, shape.in_channels, shape.kernel_size),)
    return stages, layer.positions(module, stages), shape.groups
