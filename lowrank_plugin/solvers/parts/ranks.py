# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The ranks a decomposer is asked for, and those that it puts on a curve."""

from __future__ import annotations

import math

from lowrank_hooks import Rank


def check_rank(rank: Rank, length: int, name: str) -> None:
    """Raise unless ``rank`` has the right length and positive entries.

    >>> check_rank((4,), 1, "svd")

    :param rank: what the user gave.
    :param length: how many numbers the decomposer wants.
    :param name: the decomposer's name in messages.
    :raises ValueError: for a wrong length or an entry below one.
    """
    if len(rank) != length or any(int(entry) != entry or entry < 1 for entry in rank):
        msg = f"{name} takes {length} positive whole number(s) as rank, not {tuple(rank)}."
        raise ValueError(msg)


def rank_grid(largest: int, multiple: int, points: int | None = None) -> list[int]:
    """Ranks for a curve: multiples of ``multiple`` up to ``largest``, thinned evenly, and ``largest`` itself.

    >>> rank_grid(30, 8), rank_grid(512, 8, 4)
    ([8, 16, 24, 30], [128, 256, 384, 512])

    :param largest: the largest useful rank.
    :param multiple: what ranks should be multiples of.
    :param points: about how many ranks there may be; None for no limit.
    :return: ascending ranks.
    """
    if points is not None:
        multiple *= max(1, math.ceil(largest / (multiple * points)))
    return sorted({*range(multiple, largest + 1, multiple), largest})
