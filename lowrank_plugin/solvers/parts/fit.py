# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What every fit does before and after its mathematics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from lowrank_hooks import Factorization, Problem, Solution, Status
from lowrank_plugin.solvers.parts.checks import is_finite

T = TypeVar("T")


def each_finite(
    problems: Sequence[Problem], solve: Callable[[list[Problem]], Sequence[T]], otherwise: Callable[[], T]
) -> list[T]:
    """Solve together the problems that are free of NaN and infinity.

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

    :param problem: the problem as it was asked.
    :param chain: its approximation.
    :param energy: squared norm of the kernel, where it is known.
    :return: the relative error.
    """
    difference = chain.to_kernel().to(problem.kernel).reshape_as(problem.matrix).sub_(problem.matrix)
    error = float(problem.norm.squared(difference).double().sum())
    total = float(problem.energy if energy is None else energy)
    return math.sqrt(error / total) if total > 0 else math.sqrt(error)


def record(
    problem: Problem,
    chain: Factorization,
    status: Status,
    started: float,
    peak_bytes: int,
    errors: Sequence[float] = (),
    energy: float | None = None,
) -> Solution:
    """The solution with the statistics that all decomposers share.

    :param problem: the problem as it was asked.
    :param chain: the answer, on the problem's device.
    :param status: how the fit ended.
    :param started: ``time.perf_counter()`` at its beginning.
    :param peak_bytes: the stated peak extra memory.
    :param errors: relative errors of the iterates by the solver's account, the start first; empty for a closed form.
    :param energy: squared norm of the kernel, where it is known.
    :return: the solution.
    """
    if not bool(torch.isfinite(torch.stack([stage.weight.abs().amax() for stage in chain.stages])).all()):
        return Solution(None, Status.NONFINITE_INPUT, {"seconds": time.perf_counter() - started})
    statistics = {
        "relative_error": measured_error(problem, chain, energy),
        "errors": [float(error) for error in errors],
        "iterations": max(len(errors) - 1, 0),
        "peak_bytes": int(peak_bytes),
        "seconds": time.perf_counter() - started,
    }
    return Solution(chain, status, statistics)


def non_finite(started: float) -> Solution:
    """The answer to a problem that contains NaN or infinity.

    :param started: ``time.perf_counter()`` at the beginning of the fit.
    :return: a solution without a value.
    """
    return Solution(None, Status.NONFINITE_INPUT, {"seconds": time.perf_counter() - started})
