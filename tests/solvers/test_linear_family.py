# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What every chain of ungrouped stages promises: svd, spatial_svd, tucker2, tucker2_spatial and TensorLy's Tucker."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from solvers.problems import CASES, PROBLEMS, Case, covariance, exact_spatial, exact_tucker, power_law_kernel

from lowrank_hooks import Factorization, Norm, Problem, Rank, Status
from lowrank_plugin.solvers.spatial_svd import SpatialSvd
from lowrank_plugin.solvers.svd import Svd
from lowrank_plugin.solvers.tensorly.partial_tucker import TensorlyPartialTucker
from lowrank_plugin.solvers.tucker2 import Tucker2
from lowrank_plugin.solvers.tucker2_spatial import Tucker2Spatial


@dataclass(frozen=True)
class Method:
    """A decomposer and ranks that suit the problems of the table.

    :param rank: an ordinary rank.
    :param over: a rank above every mode.
    """

    name: str
    decomposer: Any
    rank: Rank
    over: Rank


METHODS = [
    Method("svd", Svd(), (4,), (10**6,)),
    Method("spatial_svd", SpatialSvd(), (5,), (10**6,)),
    Method("tucker2", Tucker2(), (5, 3), (10**6, 10**6)),
    Method("tucker2_spatial", Tucker2Spatial(), (5, 3, 6), (10**6, 10**6, 10**6)),
    Method("tensorly", TensorlyPartialTucker(), (5, 3), (10**6, 10**6)),
]
OURS = METHODS[:4]


def by_name(item: Any) -> str:
    return str(item.name)


every_method = pytest.mark.parametrize("method", METHODS, ids=by_name)
our_methods = pytest.mark.parametrize("method", OURS, ids=by_name)
every_case = pytest.mark.parametrize("case", CASES, ids=by_name)


def tolerance(problem: Problem) -> float:
    return 2e-3 if problem.kernel.dtype == torch.float32 else 1e-6


@every_method
@every_case
def test_reports_the_error_it_made(method: Method, case: Case) -> None:
    solution = method.decomposer.fit(case.problem, method.rank)
    measured = case.problem.relative_error(solution.value)
    assert solution.statistics["relative_error"] == pytest.approx(measured, rel=1e-6, abs=1e-9)
    assert 0 <= measured <= 1 + tolerance(case.problem)
    json.dumps(solution.statistics, allow_nan=False)


@every_method
@every_case
def test_structure_is_what_fit_returns(method: Method, case: Case) -> None:
    for rank in (method.rank, method.over, tuple(1 for _ in method.rank)):
        chain = method.decomposer.fit(case.problem, rank).value
        assert chain.shapes == method.decomposer.structure(case.problem.shape, rank)
        assert chain.to_kernel().shape == case.problem.kernel.shape
        assert all(s.weight.dtype == case.problem.kernel.dtype and s.weight.isfinite().all() for s in chain.stages)


@every_method
@every_case
def test_full_rank_is_exact(method: Method, case: Case) -> None:
    solution = method.decomposer.fit(case.problem, method.over)
    assert solution.statistics["relative_error"] < 2 * tolerance(case.problem)


@our_methods
@every_case
def test_curve_bounds_the_fit(method: Method, case: Case) -> None:
    curve = method.decomposer.curve(case.problem)
    assert curve
    for point in curve[:: max(1, len(curve) // 8)]:
        error = method.decomposer.fit(case.problem, point.rank).statistics["relative_error"]
        assert error <= point.error * (1 + 2e-3) + tolerance(case.problem)


@our_methods
@every_case
def test_error_never_rises(method: Method, case: Case) -> None:
    errors = method.decomposer.fit(case.problem, method.rank).statistics["errors"]
    assert all(after <= before for before, after in itertools.pairwise(errors))


@our_methods
def test_identity_covariance_is_the_plain_norm(method: Method) -> None:
    kernel = power_law_kernel(1, 12, 8, 3, 3)
    decomposer = method.decomposer if method.name == "svd" else replace(method.decomposer, max_steps=200, rtol=1e-12)
    plain = decomposer.fit(Problem(kernel), method.rank)
    weighted = decomposer.fit(Problem(kernel, Norm(torch.eye(72, dtype=torch.float64)[None])), method.rank)
    assert weighted.statistics["relative_error"] == pytest.approx(plain.statistics["relative_error"], rel=1e-4)


@our_methods
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scaling_the_kernel_scales_the_answer(method: Method, scale: float) -> None:
    for dtype in (torch.float32, torch.float64):
        kernel = power_law_kernel(1, 12, 8, 3, 3, dtype=dtype)
        norm = Norm(covariance(1, 72, dtype=dtype))
        base = method.decomposer.fit(Problem(kernel, norm), method.rank)
        scaled = method.decomposer.fit(Problem(kernel * scale, norm), method.rank)
        assert scaled.status == base.status
        atol = 2e-3 if dtype == torch.float32 else 1e-6
        torch.testing.assert_close(scaled.value.to_kernel() / scale, base.value.to_kernel(), rtol=0, atol=atol)


@our_methods
def test_permuting_channels_permutes_the_answer(method: Method) -> None:
    kernel, sigma = power_law_kernel(1, 12, 8, 3, 3), covariance(1, 72)
    outputs, inputs = torch.randperm(12, generator=torch.Generator().manual_seed(1)), torch.arange(7, -1, -1)
    columns = (inputs[:, None] * 9 + torch.arange(9)).flatten()
    base = method.decomposer.fit(Problem(kernel, Norm(sigma)), method.rank).value.to_kernel()
    moved = Problem(kernel[:, outputs][:, :, inputs], Norm(sigma[:, columns][:, :, columns]))
    answer = method.decomposer.fit(moved, method.rank).value.to_kernel()
    torch.testing.assert_close(answer, base[:, outputs][:, :, inputs], rtol=0, atol=1e-6)


@every_method
def test_same_problem_same_bits(method: Method) -> None:
    problem = PROBLEMS["covariance"]
    first, second = (method.decomposer.fit(problem, method.rank).value for _ in range(2))
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(first.stages, second.stages, strict=True))


@our_methods
def test_groups_are_solved_as_if_alone(method: Method) -> None:
    kernel, sigma = power_law_kernel(3, 6, 5, 3, 3), covariance(3, 45)
    decomposer = method.decomposer if method.name == "svd" else replace(method.decomposer, max_steps=4, rtol=0.0)
    rank = tuple(min(entry, 3) for entry in method.rank)
    together = decomposer.fit(Problem(kernel, Norm(sigma)), rank).value.to_kernel()
    for g in range(3):
        alone = decomposer.fit(Problem(kernel[g : g + 1], Norm(sigma[g : g + 1])), rank).value.to_kernel()
        torch.testing.assert_close(together[g : g + 1], alone, rtol=0, atol=1e-7)


@every_method
def test_zero_kernel(method: Method) -> None:
    for norm in (Norm(), Norm(covariance(1, 72))):
        solution = method.decomposer.fit(Problem(torch.zeros(1, 12, 8, 3, 3, dtype=torch.float64), norm), method.rank)
        assert solution.statistics["relative_error"] == 0
        assert not solution.value.to_kernel().any()


@every_method
@pytest.mark.parametrize("where", ["kernel", "covariance", "gradient"])
def test_non_finite_input_is_reported(method: Method, where: str) -> None:
    kernel, sigma, gamma = power_law_kernel(1, 12, 8, 3, 3), covariance(1, 72), covariance(1, 12)
    {"kernel": kernel, "covariance": sigma, "gradient": gamma}[where].view(-1)[3] = float("nan")
    problem = Problem(kernel, Norm(sigma, gamma))
    solution = method.decomposer.fit(problem, method.rank)
    assert solution.value is None
    assert solution.status is Status.NONFINITE_INPUT
    assert not method.decomposer.curve(problem)


@every_method
def test_half_precision_is_refused_with_the_cure(method: Method) -> None:
    problem = Problem(torch.ones(1, 4, 4, 3, 3, dtype=torch.bfloat16))
    for call in (method.decomposer.curve, lambda p: method.decomposer.fit(p, method.rank)):
        with pytest.raises(ValueError, match=r"bfloat16: convert it first"):
            call(problem)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_method
def test_half_precision_weights_upcast(method: Method, dtype: torch.dtype) -> None:
    kernel = power_law_kernel(1, 12, 8, 3, 3).to(dtype).float()
    assert method.decomposer.fit(Problem(kernel), method.over).statistics["relative_error"] < 1e-5


@every_method
@pytest.mark.parametrize("bad", [(), (0,), (-1, 2), (1, 1, 1, 1), (1.5,), (0, 0), (0, 0, 0)])
def test_bad_ranks_are_refused(method: Method, bad: Rank) -> None:
    with pytest.raises(ValueError, match="rank"):
        method.decomposer.fit(PROBLEMS["frobenius"], bad)


@our_methods
def test_exact_rank_kernels_are_recovered(method: Method) -> None:
    kernel = {
        "svd": exact_tucker(1, 12, 8, (3, 3), (4, 8)),
        "spatial_svd": exact_spatial(1, 12, 8, (3, 3), 5),
        "tucker2": exact_tucker(1, 12, 8, (3, 3), (5, 3)),
        "tucker2_spatial": torch.einsum(
            "gqphw,tq,sp->gtshw",
            exact_spatial(1, 5, 3, (3, 3), 6),
            *(torch.linalg.qr(power_law_kernel(1, n, r)[0]).Q for n, r in ((12, 5), (8, 3))),
        ),
    }[method.name]
    for norm in (Norm(), Norm(covariance(1, 72)), Norm(covariance(1, 72), covariance(1, 12, decay=0.5))):
        for dtype, bound in ((torch.float64, 1e-6), (torch.float32, 1e-3)):
            cast = Norm(*(None if m is None else m.to(dtype) for m in (norm.covariance, norm.gradient)))
            solution = method.decomposer.fit(Problem(kernel.to(dtype), cast), method.rank)
            assert solution.statistics["relative_error"] < bound


@our_methods
def test_stages_are_balanced(method: Method) -> None:
    chain: Factorization = method.decomposer.fit(PROBLEMS["covariance"], method.rank).value
    sizes = [float(stage.weight.square().mean().sqrt()) for stage in chain.stages]
    assert max(sizes) < 3 * min(sizes)


@our_methods
def test_cuda_agrees_with_the_cpu(method: Method, cuda: torch.device) -> None:
    for problem in (PROBLEMS[name] for name in ("frobenius", "covariance", "two-sided")):
        there = replace(problem, kernel=problem.kernel.to(cuda), norm=problem.norm.map(lambda moment: moment.to(cuda)))
        answer = method.decomposer.fit(there, method.rank)
        assert answer.value.stages[0].weight.device.type == "cuda"
        expected = method.decomposer.fit(problem, method.rank).value.to_kernel()
        torch.testing.assert_close(answer.value.to_kernel().cpu(), expected, rtol=0, atol=1e-7)
