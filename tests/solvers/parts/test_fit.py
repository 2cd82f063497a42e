# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The template of all fits: what is refused, what is told, and that canonical form changes no error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from solvers.problems import CASES, PROBLEMS, Case, normal

from lowrank_hooks import Factorization, Problem, Rank, Stage, Status
from lowrank_plugin.solvers.parts.canonical import canonical
from lowrank_plugin.solvers.parts.fit import Fit, fitted, fitted_together, from_canonical

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def as_asked(shape: object, rank: Rank) -> Rank:
    return rank


def off_by(share: float, problem: Problem) -> Fit:
    return Fit(Factorization((Stage((1 + share) * problem.kernel),)), Status.CONVERGED, energy=float(problem.energy))


@every_case
def test_canonical_form_keeps_energy_and_error(case: Case) -> None:
    reduction = canonical(case.problem)
    precision = torch.finfo(case.problem.kernel.dtype).eps ** 0.5
    energy = float(reduction.problem.energy) * reduction.scale**2
    assert energy == pytest.approx(float(case.problem.energy), rel=precision)
    # column by column, so that outputs the norm is blind to stay without noise: the way back would drop that
    kernel = reduction.problem.kernel
    chain = Factorization((Stage(kernel * (1 + 0.1 * normal(*kernel.shape[2:]).to(kernel))),))
    expected = reduction.problem.relative_error(chain)
    assert 0.01 < expected < 1
    assert case.problem.relative_error(reduction.restore(chain)) == pytest.approx(expected, rel=precision)


@every_case
def test_a_canonical_solver_reports_what_it_returns(case: Case) -> None:
    solve = from_canonical(lambda problem, ranks: off_by(0.25, problem))
    solution = fitted(case.problem, (1,), as_asked, solve)
    precision = torch.finfo(case.problem.kernel.dtype).eps ** 0.5
    assert solution.statistics["relative_error"] == pytest.approx(0.25, rel=precision)


def test_a_chain_that_overflowed_is_no_answer() -> None:
    problem = Problem(torch.ones(1, 2, 2))
    solution = fitted(problem, (1,), as_asked, lambda problem, ranks: off_by(torch.inf, replace(problem)))
    assert solution.value is None
    assert solution.status is Status.NONFINITE_INPUT
    assert set(solution.statistics) == {"seconds"}


def test_what_a_decomposer_reports_takes_the_place_of_what_all_do() -> None:
    fit = replace(off_by(0.0, PROBLEMS["frobenius"]), errors=(0.5, 0.25), statistics={"iterations": 7, "own": 1})
    solutions = fitted_together([PROBLEMS["frobenius"]], (1,), as_asked, lambda sound, ranks: [fit], lambda *sizes: 12)
    told = solutions[0].statistics
    assert (told["errors"], told["iterations"], told["own"], told["peak_bytes"]) == ([0.5, 0.25], 7, 1, 12)
