# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What a third party sets, and what all checks share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from lowrank_hooks import Decomposer, Factorization, KernelShape, Point, Problem, Rank, Solution
from lowrank_hooks.testing.problems import Case, cases

ROUNDING = 1e-6
"""Errors below this are rounding; the problems are float64 and well scaled."""


class ConformanceBase:
    """What a third party sets in a subclass, and how the checks pick ranks.

    :param decomposer: the implementation; the only attribute without a default.
    :param spatial_axes: the numbers of spatial axes it takes, as in its record.
    :param inexact: why no rank reproduces a kernel exactly; None where some rank does.
    :param curve_tolerance: how far, relative, the error of a fit may be above the one predicted.
    :param curve_factor: how many times the error of a fit the predicted one may be; None for any number.
    :param agreement: how far, relative, errors may differ between dtypes, devices, scales, grouped and alone.
    :param aware: whether it minimises the error in the norm it is asked for; False for one that solves in the Frobenius
        norm and only reports the error in the other, which is better refused.
    """

    decomposer: Decomposer
    spatial_axes: frozenset[int] = frozenset({0, 1, 2, 3})
    inexact: str | None = None
    curve_tolerance: float = 0.05
    curve_factor: float | None = 2.0
    agreement: float = 0.05
    aware: bool = True
    _own_cases: list[Case]
    _curves: dict[str, list[Point]]
    _known: dict[tuple[str, Rank], Factorization]

    def exact_rank(self, shape: KernelShape) -> Rank | None:
        """The rank that reproduces every kernel of this shape; None takes the curve's point of the lowest error.

        :param shape: the kernel's sizes.
        """
        return None

    @classmethod
    def cases(cls) -> list[Case]:
        """The problems to try, each under a name of its own; a subclass may add or leave out some."""
        return cases(cls.spatial_axes)

    @classmethod
    def pytest_generate_tests(cls, metafunc: Any) -> None:
        """Run each check that takes a ``case`` on all of them."""
        if "case" in metafunc.fixturenames:
            if "_own_cases" not in vars(cls):
                cls._own_cases = cls.cases()
            metafunc.parametrize("case", cls._own_cases, ids=lambda case: case.name)

    def points(self, case: Case) -> list[Point]:
        """The curve from the fewest weights to the most; skips the check where the decomposer declines the problem."""
        try:
            curve = self._curve(case)
        except ValueError as error:
            if not case.refusable:
                raise
            pytest.skip(f"refused: {error}")
        if not curve:
            pytest.skip("an empty curve: this kernel is not for this decomposer")
        return sorted(curve, key=lambda point: (self.weights(case.problem.shape, point.rank), -point.error))

    def _curve(self, case: Case) -> list[Point]:
        cls = type(self)
        if "_curves" not in vars(cls):
            cls._curves = {}
        if case.name not in cls._curves:
            cls._curves[case.name] = list(self.decomposer.curve(case.problem))
        return cls._curves[case.name]

    def ranks(self, case: Case) -> list[Rank]:
        """The least, a middle and the largest rank of the curve."""
        ranks = [point.rank for point in self.points(case)]
        return list(dict.fromkeys((ranks[0], ranks[len(ranks) // 2], ranks[-1])))

    def weights(self, shape: KernelShape, rank: Rank) -> int:
        """How many weights a chain has for one group."""
        return sum(stage.parameters for stage in self.decomposer.structure(shape, rank))

    def fitted(self, problem: Problem, rank: Rank) -> Factorization:
        """The factors of a fit that must succeed."""
        return value_of(self.decomposer.fit(problem, rank), rank)

    def known(self, case: Case, rank: Rank) -> Factorization:
        """As ``fitted``, but solved only once for all checks that just look at the factors."""
        cls = type(self)
        if "_known" not in vars(cls):
            cls._known = {}
        key = (case.name, rank)
        if key not in cls._known:
            cls._known[key] = self.fitted(case.problem, rank)
        return cls._known[key]

    def error(self, problem: Problem, rank: Rank) -> float:
        """The measured relative error of a fit that must succeed."""
        return problem.relative_error(self.fitted(problem, rank))

    def known_error(self, case: Case, rank: Rank) -> float:
        """As ``error``, by ``known``."""
        return case.problem.relative_error(self.known(case, rank))


def value_of(solution: Solution, rank: Rank) -> Factorization:
    """The factors of a solution, with a message where there are none.

    >>> from lowrank_hooks import Stage, Status
    >>> chain = Factorization((Stage(torch.ones(1, 1, 1)),))
    >>> value_of(Solution(chain, Status.CONVERGED), (1,)) is chain
    True
    """
    assert isinstance(solution, Solution), f"fit returned a {type(solution).__name__}; it must return a Solution."
    assert solution.value is not None, f"fit at rank {rank} returned no factors: {solution.status.value}"
    return solution.value


def bits(chain: Factorization) -> list[bytes]:
    """The weights of a chain as they are in memory.

    >>> from lowrank_hooks import Stage
    >>> bits(Factorization((Stage(torch.ones(1, 1, 1)),)))
    [b'\\x00\\x00\\x80?']
    """
    return [stage.weight.detach().cpu().contiguous().numpy().tobytes() for stage in chain.stages]


def tensors_of(problem: Problem) -> list[torch.Tensor]:
    """All tensors of a problem.

    >>> [tensor.shape for tensor in tensors_of(Problem(torch.ones(1, 4, 3)))]
    [torch.Size([1, 4, 3])]
    """
    return [problem.kernel, *problem.norm.tensors]


def cast(problem: Problem, **how: Any) -> Problem:
    """The problem with all of its tensors moved or converted, as by ``Tensor.to``.

    >>> cast(Problem(torch.ones(1, 4, 3)), dtype=torch.float64).kernel.dtype
    torch.float64
    """
    return replace(problem, kernel=problem.kernel.to(**how), norm=problem.norm.map(lambda tensor: tensor.to(**how)))


def ordered_pairs(ranks: Sequence[Rank]) -> list[tuple[Rank, Rank]]:
    """Pairs of ranks of which the second is at least the first in every entry.

    >>> ordered_pairs([(2, 4), (4, 4), (4, 2)])
    [((2, 4), (4, 4)), ((4, 2), (4, 4))]
    """
    return [
        (low, high)
        for low, high in itertools.permutations(ranks, 2)
        if len(low) == len(high) and all(a <= b for a, b in zip(low, high, strict=True))
    ]
