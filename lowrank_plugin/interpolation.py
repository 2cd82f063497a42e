# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A function that rises along every axis, from noisy values on a grid."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MonotoneGrid:
    """Multilinear between the points of a grid, constant outside.

    >>> grid = MonotoneGrid.of([(0, 10)], torch.tensor([1.0, 3.0]))
    >>> grid((5,)), grid((20,))
    (2.0, 3.0)

    :param axes: the rising coordinates on each axis.
    :param values: [len(axis) for each axis], rising along every axis.
    """

    axes: Sequence[Sequence[float]]
    values: Tensor

    @classmethod
    def of(cls, axes: Sequence[Sequence[float]], values: Tensor) -> MonotoneGrid:
        """Smooth noisy values so that they rise along every axis.

        Halfway between the smallest rising values above them and the largest below them; values that rise already are
        kept.

        >>> MonotoneGrid.of([(1, 2, 3)], torch.tensor([1.0, 4.0, 2.0])).values
        tensor([1., 3., 3.])

        :param axes: the rising coordinates on each axis.
        :param values: [len(axis) for each axis].
        """
        above, below = values, values
        for axis in range(values.dim()):
            above = above.cummax(axis).values
            below = below.flip(axis).cummin(axis).values.flip(axis)
        return cls(axes, (above + below) / 2)

    def __call__(self, point: Sequence[float]) -> float:
        """The value at a point.

        :param point: a coordinate for each axis.
        """
        values = self.values
        for axis, x in zip(self.axes, point, strict=True):
            upper = min(bisect_left(axis, x), len(axis) - 1)
            lower = max(upper - 1, 0)
            share = 1.0 if upper == lower else (x - axis[lower]) / (axis[upper] - axis[lower])
            values = torch.lerp(values[lower], values[upper], min(max(share, 0.0), 1.0))
        return float(values)
