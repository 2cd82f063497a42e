# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The memory that the two-block alternation takes."""

from __future__ import annotations

from lowrank_hooks import KernelShape

ROWS = 576
"""Most rows of the projected covariance that are computed at a time."""


def fit_bytes(shape: KernelShape, combined: int, rank: int, rank_out: int, itemsize: int) -> int:
    """The most extra memory of a covariance fit: the start, or the projected covariance with the rows in the making.

    >>> fit_bytes(KernelShape(1, 64, 64, (3, 3)), 64, 16, 32, 4)
    923443

    :param shape: the kernel's sizes.
    :param combined: A, how many columns are combined.
    :param rank: R.
    :param rank_out: Q.
    :param itemsize: bytes of one entry of the kernel.
    :return: bytes, without the final measurement.
    """
    outputs = min(shape.out_channels, shape.in_channels * shape.taps)
    columns = shape.in_channels * shape.taps
    inner = rank * columns // combined
    held = itemsize * (outputs * columns + combined**2)
    start = 59 * combined**2 + 2 * outputs * columns
    seen = (8 + itemsize) * outputs * inner
    making = 8 * inner**2 + seen + rows_bytes(columns, inner, itemsize)
    solving = 8 * inner**2 + 2 * seen + 8 * rank_out * inner + 24 * outputs**2
    # Two twenty-fifths on top for everything small.
    return shape.groups * 27 * (held + max(start, making, solving)) // 25


def rows_bytes(columns: int, inner: int, itemsize: int) -> int:
    """Memory of the rows of a projected covariance in the making.

    >>> rows_bytes(576, 144, 4)
    414720

    :param columns: of the covariance.
    :param inner: of the projected one.
    :param itemsize: bytes of one entry.
    :return: bytes.
    """
    return itemsize * min(ROWS, -(-inner // 2)) * (2 * columns + 2 * inner)
