# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""TensorLy's parafac as a decomposer."""

from __future__ import annotations

import threading

import pytest
import tensorly
import torch
from solvers.problems import covariance, power_law_kernel

from lowrank_hooks import Norm, Problem, Status
from lowrank_plugin.solvers.cpd import Cpd
from lowrank_plugin.solvers.tensorly.conversion import to_cp_tensor
from lowrank_plugin.solvers.tensorly.parafac import TensorlyParafac


@pytest.mark.parametrize("rank", [1, 8, 24, 48])
@pytest.mark.parametrize("seed", [0, 1])
def test_is_no_better_than_ours(rank: int, seed: int) -> None:
    problem = Problem(power_law_kernel(1, 32, 24, 3, 3, seed=seed), slack=None)
    theirs = [TensorlyParafac(init=init).fit(problem, (rank,)) for init in ("svd", "random")]
    ours = Cpd().fit(problem, (rank,)).statistics["relative_error"]
    assert ours <= min(solution.statistics["relative_error"] for solution in theirs) * (1 + 1e-3)


def test_reports_the_error_in_the_norm_of_the_problem() -> None:
    problem = Problem(power_law_kernel(2, 6, 5, 3, 3), Norm(covariance(2, 45)))
    solution = TensorlyParafac().fit(problem, (4,))
    assert solution.value is not None
    assert solution.value.shapes == TensorlyParafac().structure(problem.shape, (4,))
    assert solution.statistics["relative_error"] == pytest.approx(problem.relative_error(solution.value), rel=1e-6)
    assert solution.status in (Status.CONVERGED, Status.MAX_ITERATIONS, Status.DEGENERATE)
    for point in TensorlyParafac().curve(problem):
        assert point.error >= 0


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scale(scale: float) -> None:
    kernel = power_law_kernel(1, 8, 6, 3, 3, dtype=torch.float32)
    base, scaled = (TensorlyParafac().fit(Problem(k), (4,)) for k in (kernel, scale * kernel))
    assert scaled.statistics["relative_error"] == pytest.approx(base.statistics["relative_error"], rel=0.05)


def test_the_backend_is_left_alone() -> None:
    before = tensorly.get_backend()
    elsewhere: list[str] = []
    TensorlyParafac().fit(Problem(torch.ones(1, 4, 3, 3, 3)), (2,))
    to_cp_tensor(Cpd().fit(Problem(torch.ones(1, 4, 3, 3, 3)), (2,)).value)  # type: ignore[arg-type]
    thread = threading.Thread(target=lambda: elsewhere.append(tensorly.get_backend()))
    thread.start()
    thread.join()
    assert tensorly.get_backend() == before == elsewhere[0]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="positive whole number"):
        TensorlyParafac().fit(Problem(torch.ones(1, 4, 3, 3, 3)), (0,))
    nan = Problem(torch.full((1, 4, 3, 3, 3), float("nan")))
    assert TensorlyParafac().fit(nan, (2,)).status is Status.NONFINITE_INPUT
    assert TensorlyParafac().curve(nan) == []
