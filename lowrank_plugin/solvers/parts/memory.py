# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The extra memory of what all fits share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowrank_hooks import KernelShape, NormKind, StageShape

_SEEN = 1024
"""Columns of the images under a covariance that :meth:`lowrank_hooks.Norm.squared` holds at once: two blocks."""


def whole_fit(shape: KernelShape, stages: Sequence[StageShape], kind: NormKind, itemsize: int, solving: int = 0) -> int:
    """The peak extra memory of a fit whose mathematics is known to take so much.

    Either that is the most, with the output side of a norm beside it, or what every fit ends with: scaling the chain
    and measuring its error.

    >>> from lowrank_hooks import NORMS
    >>> stages = StageShape(2, 8), StageShape(8, 2)
    >>> [whole_fit(KernelShape(1, 8, 8), stages, NORMS[name], 4, solving=4096) for name in ("covariance", "two-sided")]
    [4096, 5120]

    :param shape: the kernel's sizes.
    :param stages: the chain's, for one group.
    :param kind: of the norm.
    :param itemsize: bytes of one entry.
    :param solving: bytes that solving takes in the norm without its output side.
    :return: bytes.
    """
    return max(_final_bytes(shape, stages, kind, itemsize), solving + _extra_side(shape, kind, itemsize))


def _extra_side(shape: KernelShape, kind: NormKind, itemsize: int) -> int:
    """Bytes that the output side of a norm takes throughout a fit: the kernel seen through it, its root and inverse.

    :param shape: the kernel's sizes.
    :param kind: of the norm.
    :param itemsize: bytes of one entry.
    :return: bytes; 0 for a one-sided norm.
    """
    return itemsize * (shape.parameters + 3 * shape.groups * shape.out_channels**2) if kind.turned else 0


def _final_bytes(shape: KernelShape, stages: Sequence[StageShape], kind: NormKind, itemsize: int) -> int:
    """Extra memory of what ends every fit: scaling the chain and measuring its error.

    :param shape: the kernel's sizes.
    :param stages: the chain's, for one group.
    :param kind: of the norm.
    :param itemsize: bytes of one entry.
    :return: bytes.
    """
    chain = sum(stage.parameters for stage in stages)
    kernel = shape.parameters // shape.groups
    columns = kernel // shape.out_channels
    # The difference, and its image under the norm or two blocks of that.
    image = shape.out_channels * min(columns, _SEEN) if kind.weighted else kernel
    measured, before, taps = kernel + image, 0, 1
    for stage in stages:
        taps *= math.prod(stage.kernel_size)
        product = stage.out_channels * shape.in_channels * taps
        # A product with taps comes out in another order than it is needed in.
        extra = max(stage.parameters, product) if math.prod(stage.kernel_size) > 1 else 0
        measured, before = max(measured, before + product + extra), product
    scaled = max(chain, *(stage.parameters for stage in stages))
    small = 16 * sum(stage.parameters // math.prod(stage.kernel_size) for stage in stages)
    # The way back from the triangular factor that stands for a kernel with more outputs than inputs.
    lift = kernel + columns**2 if columns < shape.out_channels else 0
    whole = itemsize * (chain + lift + max(measured, scaled)) + small
    return shape.groups * whole + _extra_side(shape, kind, itemsize)
