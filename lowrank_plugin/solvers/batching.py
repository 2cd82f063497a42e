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

    >>> import torch
    >>> from lowrank_plugin.solvers import Svd
    >>> [len(curve) for curve in curves(Svd(), [Problem(torch.ones(1, 4, 6))] * 2)]
    [4, 4]

    :param decomposer: asked once if it is a :class:`lowrank_hooks.BatchDecomposer`, else for one after the other.
    :param problems: of one shape, dtype, device and kind of norm.
    :return: a curve for each problem.
    """
    if isinstance(decomposer, BatchDecomposer) and _knows_of(decomposer, "curves", "curve"):
        return list(decomposer.curves(problems))
    return [decomposer.curve(problem) for problem in problems]


def solutions(decomposer: Decomposer, problems: Sequence[Problem], rank: Rank) -> list[Solution]:
    """The solutions of problems that are alike.

    >>> import torch
    >>> from lowrank_plugin.solvers import Cpd
    >>> alike = [Problem(size * torch.ones(1, 6, 4, 3, 3)) for size in (1, 2)]
    >>> [round(float(solution.value.to_kernel().mean()), 1) for solution in solutions(Cpd(), alike, (1,))]
    [1.0, 2.0]

    :param decomposer: asked once if it is a :class:`lowrank_hooks.BatchDecomposer`, else for one after the other.
    :param problems: of one shape, dtype, device and kind of norm.
    :param rank: the rank of all.
    :return: a solution for each problem.
    """
    if isinstance(decomposer, BatchDecomposer) and _knows_of(decomposer, "fits", "fit"):
        return list(decomposer.fits(problems, rank))
    return [decomposer.fit(problem, rank) for problem in problems]


def _knows_of(decomposer: Decomposer, many: str, one: str) -> bool:
    """Whether the method for many problems is no older than that for one.

    A class that inherits from a :class:`lowrank_hooks.BatchDecomposer` and changes ``fit`` alone inherits a ``fits``
    that knows nothing of the change, so it is asked for one problem after the other.
    """
    for kind in type(decomposer).__mro__:
        if many in vars(kind):
            return True
        if one in vars(kind):
            return False
    return True
