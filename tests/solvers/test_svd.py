# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The singular value decomposition against Eckart and Young."""

from __future__ import annotations

import pytest
import torch
from solvers.problems import CASES, Case, covariance, eckart_young, normal, power_law_kernel

from lowrank_hooks import Norm, Problem, SampledNorm, Status
from lowrank_plugin.solvers.svd import Svd


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_is_the_global_optimum(case: Case) -> None:
    tolerance = 1e-3 if case.problem.kernel.dtype == torch.float32 else 1e-6
    for point in Svd().curve(case.problem):
        optimum = eckart_young(case.problem, point.rank[0])
        assert point.error == pytest.approx(optimum, rel=tolerance, abs=tolerance)
        reached = Svd().fit(case.problem, point.rank).statistics["relative_error"]
        assert reached == pytest.approx(optimum, rel=tolerance, abs=tolerance)


def test_linear_layers_become_the_plain_pair() -> None:
    problem = Problem(normal(1, 20, 30), Norm(covariance(1, 30)))
    chain = Svd().fit(problem, (7,)).value
    assert [stage.weight.shape for stage in chain.stages] == [(1, 7, 30), (1, 20, 7)]


@pytest.mark.parametrize("outputs", [20, 150])
@pytest.mark.parametrize("two_sided", [False, True])
def test_few_vectors_do_as_well_as_their_covariance(outputs: int, two_sided: bool) -> None:
    kernel, vectors = normal(1, outputs, 120), normal(1, 10, 120, seed=1)
    sampled = SampledNorm(vectors, torch.full((1,), 0.1).double(), covariance(1, outputs) if two_sided else None)
    asked = Problem(kernel, sampled), Problem(kernel, Norm(sampled.covariance, sampled.gradient))
    few, dense = (Svd().curve(problem) for problem in asked)
    assert [point.error for point in few] == pytest.approx([point.error for point in dense], abs=1e-7)
    few, dense = (Svd().fit(problem, (9,)) for problem in asked)
    torch.testing.assert_close(few.value.to_kernel(), dense.value.to_kernel())
    assert few.statistics["relative_error"] == pytest.approx(dense.statistics["relative_error"])


def test_nearly_full_rank_error_is_accurate_in_float32() -> None:
    kernel, sigma = power_law_kernel(1, 40, 30, 3, 3, decay=1.8), covariance(1, 270, decay=0.5)
    exact = eckart_young(Problem(kernel, Norm(sigma)), 39)
    assert 1e-6 < exact < 2e-4
    single = Problem(kernel.float(), Norm(sigma.float()))
    assert {p.rank: p.error for p in Svd().curve(single)}[(39,)] == pytest.approx(exact, rel=0.02)
    assert Svd().fit(single, (39,)).statistics["relative_error"] == pytest.approx(exact, rel=0.02)


def test_curve_follows_the_rank_multiple() -> None:
    problem = Problem(normal(1, 20, 30), rank_multiple=8)
    assert [point.rank for point in Svd().curve(problem)] == [(8,), (16,), (20,)]


@pytest.mark.parametrize(
    ("kernel", "norm"),
    [
        (normal(1, 12, 3) @ normal(1, 3, 20, seed=1), Norm()),
        (normal(1, 12, 20), Norm(torch.diag_embed(torch.arange(20).lt(3).double())[None])),
        (torch.zeros(1, 12, 20, dtype=torch.float64), Norm()),
    ],
    ids=["kernel", "covariance", "zero"],
)
def test_rank_deficiency_is_reported(kernel: torch.Tensor, norm: Norm) -> None:
    problem = Problem(kernel, norm)
    assert Svd().fit(problem, (5,)).status is Status.RANK_DEFICIENT
    if kernel.any():
        assert Svd().fit(problem, (2,)).status is Status.CONVERGED


def test_dead_outputs_change_as_little_as_possible() -> None:
    """Where the gradient is blind, the answer is not zero but the best fit to the kernel in the covariance norm."""
    case = next(case for case in CASES if case.name == "dead-outputs")
    problem = case.problem
    chain = Svd().fit(problem, (4,)).value
    first = chain.stages[0].weight.flatten(2)
    sigma = problem.norm.covariance
    best = (problem.matrix @ sigma @ first.mT) @ torch.linalg.inv(first @ sigma @ first.mT) @ first
    answer = chain.to_kernel().flatten(2)
    torch.testing.assert_close(answer[:, 9:], best[:, 9:], rtol=0, atol=1e-8)
