# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Tucker-2 against independent solvers: TensorLy, and the published alternation with dense normal equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from solvers.problems import CASES, PROBLEMS, covariance, eckart_young, exact_tucker, normal, power_law_kernel

from lowrank_hooks import Norm, Problem, Status
from lowrank_plugin.solvers.svd import Svd
from lowrank_plugin.solvers.tensorly.partial_tucker import TensorlyPartialTucker
from lowrank_plugin.solvers.tucker2 import Tucker2

PATIENT = Tucker2(max_steps=3000, rtol=1e-13, cg_steps=20)


def three_block_limit(problem: Problem, rank: tuple[int, int], sweeps: int) -> float:
    """Relative error of alternating over three blocks, each by one dense least-squares system, from the HOSVD."""
    w = problem.matrix[0].numpy()
    taps = problem.shape.taps
    sigma = problem.norm.covariance[0].numpy()
    values, vectors = np.linalg.eigh(sigma)
    root = vectors * np.sqrt(values.clip(0))
    target = w @ root
    inputs = problem.shape.in_channels
    left = np.linalg.svd(w, full_matrices=False)[0][:, : rank[0]]
    unfolded = problem.kernel[0].flatten(2).transpose(0, 1).flatten(1).numpy()
    right = np.linalg.svd(unfolded, full_matrices=False)[0][:, : rank[1]]

    def best_core() -> np.ndarray:
        design = np.kron(right.T, np.eye(taps)) @ root
        return np.linalg.lstsq(left, target, rcond=None)[0] @ np.linalg.pinv(design)

    core = best_core()
    for _ in range(sweeps):
        blocks = (left @ core).reshape(-1, rank[1], taps)
        system = np.einsum("tpk,skn->tnsp", blocks, root.reshape(inputs, taps, -1)).reshape(target.size, -1)
        right = np.linalg.lstsq(system, target.reshape(-1), rcond=None)[0].reshape(inputs, rank[1])
        design = core @ np.kron(right.T, np.eye(taps)) @ root
        left = np.linalg.lstsq(design.T, target.T, rcond=None)[0].T
        core = best_core()
    residual = target - left @ core @ np.kron(right.T, np.eye(taps)) @ root
    return float(np.linalg.norm(residual) / np.linalg.norm(target))


def test_reaches_the_limit_of_the_published_alternation() -> None:
    problem = Problem(power_law_kernel(1, 10, 7, 2, 2), Norm(covariance(1, 28)))
    for rank in ((5, 3), (3, 4)):
        ours = PATIENT.fit(problem, rank).statistics["relative_error"]
        assert ours == pytest.approx(three_block_limit(problem, rank, 400), rel=1e-4)


def test_full_input_rank_is_the_svd_optimum() -> None:
    for case in CASES:
        inputs = case.problem.shape.in_channels
        solution = Tucker2().fit(case.problem, (3, inputs))
        tolerance = 1e-3 if case.problem.kernel.dtype == torch.float32 else 1e-6
        assert solution.statistics["relative_error"] == pytest.approx(eckart_young(case.problem, 3), abs=tolerance)


def test_nearly_full_input_rank_is_close_to_the_svd_bound() -> None:
    problem = PROBLEMS["covariance"]
    bound = Svd().fit(problem, (5,)).statistics["relative_error"]
    assert bound <= Tucker2().fit(problem, (5, 7)).statistics["relative_error"] < 1.2 * bound


def test_full_output_rank_has_no_last_stage() -> None:
    problem = PROBLEMS["covariance"]
    chain = Tucker2().fit(problem, (12, 4)).value
    assert len(chain.stages) == 2
    assert chain.stages[1].weight.shape == (1, 12, 4, 3, 3)


@pytest.mark.parametrize("rank", [(16, 12), (8, 16), (1, 1)], ids=str)
def test_plain_residual_is_no_worse_than_tensorly(rank: tuple[int, int]) -> None:
    problem = Problem(power_law_kernel(1, 32, 24, 3, 3, decay=0.5, dtype=torch.float32))
    ours = Tucker2().fit(problem, rank).statistics["relative_error"]
    theirs = TensorlyPartialTucker().fit(problem, rank).statistics["relative_error"]
    assert ours <= theirs * (1 + 1e-5)


@pytest.mark.parametrize("decay", [0.3, 0.7, 2.5])
def test_plain_limit_is_that_of_singular_value_decompositions(decay: float) -> None:
    problem = Problem(power_law_kernel(1, 20, 16, 3, 3, decay=decay))
    solution = PATIENT.fit(problem, (8, 6))
    tensor = problem.kernel[0].flatten(2).numpy()
    right = np.linalg.svd(tensor.transpose(1, 0, 2).reshape(16, -1))[0][:, :6]
    for _ in range(2000):
        left = np.linalg.svd(np.einsum("tsk,sr->trk", tensor, right).reshape(20, -1))[0][:, :8]
        right = np.linalg.svd(np.einsum("tsk,tq->sqk", tensor, left).reshape(16, -1))[0][:, :6]
    core = np.einsum("tsk,tq,sr->qrk", tensor, left, right)
    limit = (1 - np.linalg.norm(core) ** 2 / np.linalg.norm(tensor) ** 2) ** 0.5
    assert solution.statistics["relative_error"] == pytest.approx(limit, rel=1e-4)
    errors = solution.statistics["errors"]
    assert errors == sorted(errors, reverse=True)


def test_covariance_lowers_the_output_error() -> None:
    problem = Problem(power_law_kernel(1, 32, 24, 3, 3, decay=0.5), Norm(covariance(1, 216)))
    aware = Tucker2().fit(problem, (16, 12)).statistics["relative_error"]
    plain = TensorlyPartialTucker().fit(problem, (16, 12)).statistics["relative_error"]
    assert aware < 0.8 * plain


def test_curve_offers_free_pairs() -> None:
    ranks = {point.rank for point in Tucker2().curve(Problem(power_law_kernel(1, 32, 24, 3, 3), rank_multiple=8))}
    assert {(8, 24), (32, 8), (16, 8)} <= ranks


def test_curve_is_close_above_the_start_of_the_fit() -> None:
    problem = Problem(power_law_kernel(2, 16, 12, 3, 3), Norm(covariance(2, 108)))
    points = [point for point in Tucker2().curve(problem) if point.rank[1] < 12]
    for point in points[::7]:
        statistics = Tucker2().fit(problem, point.rank).statistics
        start = statistics["errors"][0]
        assert 0.9 * point.error <= start <= 1.001 * point.error
        assert statistics["relative_error"] <= point.error
        if point.rank[0] == 16:  # no output is cut off, so both start alike
            assert start == pytest.approx(point.error, rel=1e-6, abs=1e-7)


def test_start_is_nearly_the_limit_under_a_kronecker_product() -> None:
    kernel = exact_tucker(1, 10, 8, (3, 3), (4, 3)) + 0.05 * normal(1, 10, 8, 3, 3, seed=5)
    sigma = torch.kron(covariance(1, 8)[0], covariance(1, 9, seed=1, decay=0.3)[0])[None]
    problem = Problem(kernel, Norm(sigma))
    errors = PATIENT.fit(problem, (4, 3)).statistics["errors"]
    assert errors[0] < 1.001 * errors[-1]


def test_one_tap_has_no_tucker2() -> None:
    problem = Problem(normal(1, 8, 6, 1, 1))
    assert not Tucker2().curve(problem)
    with pytest.raises(ValueError, match="use svd"):
        Tucker2().fit(problem, (4, 4))


@pytest.mark.parametrize("kernel", [(5,), (3, 5), (2, 2, 2)], ids=str)
def test_any_number_of_spatial_axes(kernel: tuple[int, ...]) -> None:
    problem = Problem(exact_tucker(1, 9, 8, kernel, (4, 3)))
    solution = Tucker2().fit(problem, (4, 3))
    assert solution.statistics["relative_error"] < 1e-6
    assert solution.value.stages[1].weight.shape == (1, 4, 3, *kernel)


def test_step_limit_is_reported() -> None:
    problem = Problem(power_law_kernel(1, 16, 12, 3, 3), Norm(covariance(1, 108)))
    solution = Tucker2(max_steps=1, rtol=0.0).fit(problem, (6, 4))
    assert solution.status is Status.MAX_ITERATIONS
    assert solution.statistics["iterations"] == 1
