# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Layers of one shape solved as one batch, where their decomposer can do that.

A network of many small layers is solved several times as fast that way: their matrices are so small that starting an
operation takes longer than the operation. Large matrices gain nothing, so few of them are held together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from lowrank_hooks import BatchDecomposer, Decomposer, Point, Problem, Rank, Solution

MOST_BYTES = 1 << 26
"""Bytes of the kernels and covariances that are solved together, unless a single problem has more."""


def batches(
    names: Sequence[str], kind: Callable[[str], Hashable], size: Callable[[str], int], most: int = MOST_BYTES
) -> list[list[str]]:
    """Layers that are alike, in as few batches as their sizes allow.

    >>> batches(["a", "b", "cc", "d"], len, lambda name: 1, most=2)
    [['a', 'b'], ['cc'], ['d']]

    :param names: of the layers.
    :param kind: the same for layers that may be solved together.
    :param size: bytes of a layer's problem.
    :param most: bytes of a batch of several.
    :return: batches, in the order of the first layer of each.
    """
    found: list[list[str]] = []
    filling: dict[Hashable, tuple[list[str], int]] = {}
    for name in names:
        batch, filled = filling.get(kind(name), ([], 0))
        if not batch or filled + size(name) > most:
            batch, filled = [], 0
            found.append(batch)
        batch.append(name)
        filling[kind(name)] = batch, filled + size(name)
    return found


def curves(decomposer: Decomposer, problems: Sequence[Problem]) -> list[Sequence[Point]]:
    """The error curves of problems that are alike.

    :param decomposer: the decomposer.
    :param problems: the problems.
    """
    if isinstance(decomposer, BatchDecomposer) and _up_to_date(decomposer, "curves", "curve"):
        return list(decomposer.curves(problems))
    return [decomposer.curve(problem) for problem in problems]


def fits(decomposer: Decomposer, problems: Sequence[Problem], rank: Rank) -> list[Solution]:
    """The solutions of problems that are alike.

    :param decomposer: the decomposer.
    :param problems: the problems.
    :param rank: the rank of all.
    """
    if isinstance(decomposer, BatchDecomposer) and _up_to_date(decomposer, "fits", "fit"):
        return list(decomposer.fits(problems, rank))
    return [decomposer.fit(problem, rank) for problem in problems]


def _up_to_date(decomposer: Decomposer, many: str, one: str) -> bool:
    """Whether the method for many problems knows of the one for one: a subclass may have changed only the latter."""
    owners = [next((kind for kind in type(decomposer).__mro__ if name in vars(kind)), object) for name in (many, one)]
    return issubclass(*owners)
