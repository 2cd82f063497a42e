# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""TKD-CPD: Tucker-2 of the kernel, CP of its core, 1x1 convolutions merged."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from solvers.problems import CASES, Case, covariance, normal, power_law_kernel

from lowrank_hooks import KernelShape, Norm, Problem, Status
from lowrank_plugin.solvers.cpd import Cpd
from lowrank_plugin.solvers.tucker2 import Tucker2
from lowrank_plugin.solvers.tucker2_cpd import Tucker2Cpd

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.mark.parametrize("rank", [(5, 3, 6), (2, 2, 12), (10**6, 10**6, 5)])
@every_case
def test_reports_what_it_returns(case: Case, rank: tuple[int, ...]) -> None:
    solution = Tucker2Cpd().fit(case.problem, rank)
    assert solution.value is not None
    assert solution.value.shapes == Tucker2Cpd().structure(case.problem.shape, rank)
    assert solution.statistics["relative_error"] == pytest.approx(
        case.problem.relative_error(solution.value), rel=1e-4, abs=1e-6
    )
    json.dumps(dict(solution.statistics), allow_nan=False)


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "dead-outputs"], ids=lambda case: case.name)
def test_errors_of_the_two_steps_add_up(case: Case) -> None:
    problem = replace(case.problem, slack=None)
    first = Tucker2().fit(problem, (5, 3)).statistics["relative_error"]
    solution = Tucker2Cpd().fit(problem, (5, 3, 6))
    core = solution.statistics["core_error"]
    # Pythagoras: the core is optimal for its bases.
    expected = (first**2 + core**2 * (1 - first**2)) ** 0.5
    assert solution.statistics["relative_error"] == pytest.approx(expected, rel=2e-2, abs=1e-3)


def test_neighbours_are_merged_where_that_is_no_larger() -> None:
    shape = KernelShape(1, 64, 48, (3, 3))
    apart = Tucker2Cpd().structure(shape, (8, 8, 40))
    assert [stage.out_channels for stage in apart] == [8, 40, 40, 8, 64]
    mixed = Tucker2Cpd().structure(shape, (8, 32, 40))
    assert [stage.out_channels for stage in mixed] == [40, 40, 8, 64]
    for rank in [(8, 8, 40), (8, 32, 40), (32, 8, 40), (64, 48, 16)]:
        stages = Tucker2Cpd().structure(shape, rank)
        assert sum(s.parameters for s in stages) <= sum(s.parameters for s in Cpd().structure(shape, rank[2:]))


def test_full_channel_ranks_are_plain_cpd() -> None:
    problem = Problem(power_law_kernel(1, 8, 6, 3, 3), slack=None)
    ours, cpd = Tucker2Cpd().fit(problem, (8, 6, 5)), Cpd().fit(problem, (5,))
    assert ours.statistics["relative_error"] == pytest.approx(cpd.statistics["relative_error"], rel=1e-6)


def test_exact_ranks_are_recovered() -> None:
    left, right = normal(1, 10, 3), normal(1, 8, 3, seed=1)
    inner = [normal(1, n, 4, seed=5 + n) for n in (3, 3, 9)]
    core = torch.einsum("gtr,gsr,gkr->gtsk", *inner)
    kernel = torch.einsum("gtsk,gqt,gps->gqpk", core, left, right).reshape(1, 10, 8, 3, 3)
    problem = Problem(kernel, Norm(covariance(1, 72, decay=0.2)), slack=None)
    method = Tucker2Cpd(Tucker2(max_steps=50, rtol=1e-12), Cpd(max_sweeps=1000, rtol=1e-12, weighted_sweeps=300))
    assert method.fit(problem, (3, 3, 4)).statistics["relative_error"] < 1e-3


@every_case
def test_curve_hardly_promises_more_than_a_fit_keeps(case: Case) -> None:
    points = Tucker2Cpd(curve_points=2).curve(case.problem)
    for point in points[-2:]:
        reached = Tucker2Cpd().fit(case.problem, point.rank).statistics["relative_error"]
        assert reached <= 1.1 * point.error + 2e-3


def test_bad_input() -> None:
    problem = Problem(torch.ones(1, 4, 3, 3, 3))
    for rank in [(1, 1), (0, 1, 1), (1, 1, 1, 1)]:
        with pytest.raises(ValueError, match="positive whole number"):
            Tucker2Cpd().fit(problem, rank)
    with pytest.raises(ValueError, match="more than one tap"):
        Tucker2Cpd().fit(Problem(torch.ones(1, 4, 3)), (1, 1, 1))
    assert Tucker2Cpd().curve(Problem(torch.ones(1, 4, 3))) == []
    bad = problem.with_kernel(problem.kernel * float("nan"))
    assert Tucker2Cpd().fit(bad, (1, 1, 1)).status is Status.NONFINITE_INPUT


def test_zero_kernel() -> None:
    solution = Tucker2Cpd().fit(Problem(torch.zeros(1, 6, 5, 3, 3)), (2, 2, 2))
    assert solution.value is not None and float(solution.value.to_kernel().abs().max()) == 0


@pytest.mark.parametrize("norm", ["frobenius", "covariance", "two-sided"])
def test_peak_memory_is_as_stated(norm: str) -> None:
    from solvers.test_memory import allocated, problems

    problem, method = problems()[norm], Tucker2Cpd()
    stated = method.fit(problem, (48, 40, 64)).statistics["peak_bytes"]
    assert allocated(lambda: method.fit(problem, (48, 40, 64))) <= stated
