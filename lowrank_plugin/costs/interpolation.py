# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A function that rises along every axis, from measured values on a grid."""

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
        """The largest values that rise along every axis and exceed none of those given.

        What disturbs a measured time only ever adds to it: one above the time at a larger coordinate was disturbed.

        >>> MonotoneGrid.of([(1, 2, 3)], torch.tensor([1.0, 4.0, 2.0])).values
        tensor([1., 2., 2.])

        :param axes: the rising coordinates on each axis.
        :param values: [len(axis) for each axis].
        """
        for axis in range(values.dim()):
            values = values.flip(axis).cummin(axis).values.flip(axis)
        return cls(axes, values)

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
