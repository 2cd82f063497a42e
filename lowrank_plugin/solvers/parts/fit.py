# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What every fit does before and after its mathematics: the checks, the way to canonical form and back, the record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from lowrank_hooks import Factorization, KernelShape, NormKind, Problem, Rank, Solution, Status
from lowrank_plugin.solvers.parts.balance import balance
from lowrank_plugin.solvers.parts.canonical import canonical
from lowrank_plugin.solvers.parts.checks import check_alike, is_finite

T = TypeVar("T")
Ranks = TypeVar("Ranks")
"""Ranks as a decomposer's mathematics wants them: a number, or several."""

PeakBytes = Callable[[KernelShape, Rank, NormKind, int], int]
""":meth:`lowrank_hooks.PeakMemory.peak_bytes` of a decomposer."""


@dataclass(frozen=True)
class Fit:
    """What the mathematics of a decomposer comes to.

    >>> from lowrank_hooks import Stage
    >>> Fit(Factorization((Stage(torch.ones(1, 2, 3)),)), Status.CONVERGED).errors
    ()

    :param chain: the approximation; None where numbers broke down on the way.
    :param status: how it ended.
    :param errors: relative errors of the iterates by the solver's account, the start first; empty for a closed form.
    :param energy: squared norm of the kernel, where it was needed anyway; it saves a product with the covariance.
    :param statistics: what this decomposer reports beyond what all do, or in the place of it.
    """

    chain: Factorization | None
    status: Status
    errors: Sequence[float] = ()
    energy: float | None = None
    statistics: Mapping[str, object] = field(default_factory=dict)


def fitted(
    problem: Problem,
    rank: Rank,
    lower: Callable[[KernelShape, Rank], Ranks],
    solve: Callable[[Problem, Ranks], Fit],
    peak_bytes: PeakBytes | None = None,
) -> Solution:
    """Check a problem, solve it and measure the answer: the whole of a decomposer's ``fit``.

    >>> from lowrank_hooks import Stage
    >>> def truncate(problem, rank):
    ...     u, s, v = problem.matrix.svd()
    ...     stages = Stage(v.mT[:, :rank]), Stage(u[:, :, :rank] * s[:, None, :rank])
    ...     return Fit(Factorization(stages), Status.CONVERGED)
    >>> problem = Problem(torch.diag(torch.tensor([4.0, 3.0]))[None])
    >>> solution = fitted(problem, (1,), lambda shape, rank: rank[0], truncate)
    >>> round(solution.statistics["relative_error"], 4)
    0.6

    :param problem: the problem as it was asked.
    :param rank: the rank as it was asked.
    :param lower: checks the rank and lowers it to the largest useful one.
    :param solve: the mathematics, for a problem without NaN and infinity.
    :param peak_bytes: states the peak extra memory; None where nothing is known of it.
    :return: the solution.
    :raises ValueError: for half precision, or a rank or kernel that ``lower`` refuses.
    """
    return fitted_together([problem], rank, lower, lambda sound, ranks: [solve(sound[0], ranks)], peak_bytes)[0]


def fitted_together(
    problems: Sequence[Problem],
    rank: Rank,
    lower: Callable[[KernelShape, Rank], Ranks],
    solve: Callable[[Sequence[Problem], Ranks], Sequence[Fit]],
    peak_bytes: PeakBytes | None = None,
) -> list[Solution]:
    """As :func:`fitted`, for problems that are alike.

    >>> from lowrank_hooks import Stage
    >>> def copies(problems, rank):
    ...     return [Fit(Factorization((Stage(each.kernel),)), Status.CONVERGED) for each in problems]
    >>> problems = [Problem(size * torch.ones(1, 2, 2)) for size in (1, torch.nan)]
    >>> solutions = fitted_together(problems, (1,), lambda shape, rank: rank[0], copies)
    >>> [solution.status.name for solution in solutions]
    ['CONVERGED', 'NONFINITE_INPUT']

    :param problems: the problems as they were asked.
    :param rank: the rank of all.
    :param lower: checks the rank and lowers it to the largest useful one.
    :param solve: the mathematics, for those without NaN and infinity; one answer each.
    :param peak_bytes: states the peak extra memory of one; None where nothing is known of it.
    :return: a solution for each problem; its time is its share of the whole.
    :raises ValueError: where the problems differ, for half precision, or a rank or kernel that ``lower`` refuses.
    """
    started = time.perf_counter()
    check_alike(problems)
    first = problems[0]
    ranks = lower(first.shape, rank)
    peak = 0 if peak_bytes is None else peak_bytes(first.shape, rank, first.norm.kind, first.kernel.element_size())
    nothing = Fit(None, Status.NONFINITE_INPUT)
    fits = each_finite(problems, lambda sound: solve(sound, ranks), lambda: nothing)
    solutions = [_solution(problem, fit, peak) for problem, fit in zip(problems, fits, strict=True)]
    seconds = (time.perf_counter() - started) / len(problems)
    return [replace(each, statistics={**each.statistics, "seconds": seconds}) for each in solutions]


def from_canonical(solve: Callable[[Problem, Ranks], Fit]) -> Callable[[Problem, Ranks], Fit]:
    """A solver of problems in any norm from one of problems in canonical form; its chains are balanced.

    >>> from lowrank_hooks import Norm, Stage
    >>> def copy(problem, ranks):
    ...     return Fit(Factorization((Stage(problem.kernel),)), Status.CONVERGED)
    >>> problem = Problem(torch.ones(1, 5, 2), Norm(gradient=torch.eye(5)[None]))
    >>> round(problem.relative_error(from_canonical(copy)(problem, ()).chain), 4)
    0.0

    :param solve: takes a problem as :func:`lowrank_plugin.solvers.parts.canonical.canonical` makes them.
    :return: takes a problem as it was asked.
    """

    def whole(problem: Problem, ranks: Ranks) -> Fit:
        reduction = canonical(problem)
        fit = solve(reduction.problem, ranks)
        chain = None if fit.chain is None else balance(reduction.restore(fit.chain))
        energy = None if fit.energy is None else fit.energy * reduction.scale**2
        return replace(fit, chain=chain, energy=energy)

    return whole


def each_finite(
    problems: Sequence[Problem], solve: Callable[[Sequence[Problem]], Sequence[T]], otherwise: Callable[[], T]
) -> list[T]:
    """Solve together the problems that are free of NaN and infinity.

    >>> bad = Problem(torch.full((1, 2, 2), torch.nan))
    >>> each_finite([Problem(torch.ones(1, 2, 2)), bad], lambda sound: ["solved"] * len(sound), lambda: "not finite")
    ['solved', 'not finite']

    :param problems: the problems.
    :param solve: called with those, if there are any.
    :param otherwise: gives the answer to the others.
    :return: an answer for each problem.
    """
    finite = [is_finite(problem) for problem in problems]
    sound = [problem for problem, answer in zip(problems, finite, strict=True) if answer]
    solved = iter(solve(sound) if sound else ())
    return [next(solved) if answer else otherwise() for answer in finite]


def measured_error(problem: Problem, chain: Factorization, energy: float | None = None) -> float:
    """The relative error of a chain, as :meth:`Problem.relative_error`, for one covariance product less.

    >>> from lowrank_hooks import Stage
    >>> measured_error(Problem(torch.full((1, 1, 1), 4.0)), Factorization((Stage(torch.ones(1, 1, 1)),)), energy=16.0)
    0.75

    :param problem: the problem as it was asked.
    :param chain: its approximation.
    :param energy: squared norm of the kernel, where it is known.
    :return: the relative error.
    """
    difference = chain.to_kernel().to(problem.kernel).reshape_as(problem.matrix).sub_(problem.matrix)
    error = float(problem.norm.squared(difference).double().sum())
    total = float(problem.energy if energy is None else energy)
    return math.sqrt(error / total) if total > 0 else math.sqrt(error)


def _solution(problem: Problem, fit: Fit, peak_bytes: int) -> Solution:
    """The solution with the statistics that all decomposers share, but for the time."""
    if fit.chain is None or not _all_finite(fit.chain):
        return Solution(None, Status.NONFINITE_INPUT)
    statistics = {
        "relative_error": measured_error(problem, fit.chain, fit.energy),
        "errors": [float(error) for error in fit.errors],
        "iterations": max(len(fit.errors) - 1, 0),
        "peak_bytes": int(peak_bytes),
        **fit.statistics,
    }
    return Solution(fit.chain, fit.status, statistics)


def _all_finite(chain: Factorization) -> bool:
    return bool(torch.isfinite(torch.stack([stage.weight.abs().amax() for stage in chain.stages])).all())
