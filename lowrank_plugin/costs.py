# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The cost models that are counted from the sizes of a chain of convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from lowrank_hooks import StageShape


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
