# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Errors of CP decompositions at ranks that were not solved for, and after sweeps that were not made."""

from __future__ import annotations

import math
from collections.abc import Sequence


def extrapolated(errors: Sequence[float], allowed: int, sweeps: int) -> float:
    """How much smaller the last squared error would be after more sweeps: a share.

    On trained kernels every doubling of the sweeps lowers the error by about the same factor, for as long as anyone
    waits; the factor is taken from the second half of the sweeps made.

    >>> extrapolated([1.0, 0.6, 0.5, 0.4, 0.4], 4, 16)
    0.64...
    >>> extrapolated([1.0, 0.6], 4, 16)
    1.0

    :param errors: squared errors of the start and after each sweep.
    :param allowed: how many sweeps there might have been; where there were fewer, nothing more is to be gained.
    :param sweeps: how many there are to be in all.
    :return: between 0 and 1.
    """
    done = len(errors) - 1
    if done < max(2, allowed) or sweeps <= done or errors[-1] <= 0:
        return 1.0
    half = done // 2
    return (errors[-1] / errors[half]) ** (math.log(sweeps / done) / math.log(done / half))


def interpolated(rank: int, ranks: Sequence[int], errors: Sequence[float]) -> float:
    """The error at a rank from those around it, which fall about exponentially for trained kernels.

    A tenth of the left one is added to both before the logarithm: next to an exact rank, where the error drops to
    nothing, the result then stays well above zero.

    >>> round(interpolated(6, [4, 8], [0.4, 0.2]), 3)
    0.285

    :param rank: the rank, between the first and the last of ``ranks``.
    :param ranks: ascending.
    :param errors: relative errors at ``ranks``, none above the one before.
    :return: a relative error.
    """
    if rank in ranks:
        return errors[ranks.index(rank)]
    right = next(index for index, other in enumerate(ranks) if other > rank)
    shift = errors[right - 1] / 10
    if shift == 0:
        return 0.0
    share = (rank - ranks[right - 1]) / (ranks[right] - ranks[right - 1])
    low, high = (math.log(errors[index] + shift) for index in (right - 1, right))
    return math.exp(low + share * (high - low)) - shift
