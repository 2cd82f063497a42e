# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The spatial singular value decomposition and its hybrid with Tucker-2."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from solvers.problems import PROBLEMS, covariance, normal, power_law_kernel

from lowrank_hooks import Norm, Problem
from lowrank_plugin.solvers.spatial_svd import SpatialSvd
from lowrank_plugin.solvers.tucker2 import Tucker2
from lowrank_plugin.solvers.tucker2_spatial import Tucker2Spatial


@pytest.mark.parametrize("shape", [(12, 8, 3, 5), (4, 16, 3, 3)], ids=str)
def test_plain_norm_is_the_svd_of_the_unfolding(shape: tuple[int, int, int, int]) -> None:
    outputs, inputs, high, wide = shape
    kernel = power_law_kernel(1, *shape)
    unfolded = kernel[0].permute(1, 2, 0, 3).reshape(inputs * high, outputs * wide)
    values = np.linalg.svd(unfolded.numpy(), compute_uv=False)
    for point in SpatialSvd().curve(Problem(kernel)):
        optimum = np.sqrt((values[point.rank[0] :] ** 2).sum() / (values**2).sum())
        assert point.error == pytest.approx(optimum, abs=1e-7)
        reached = SpatialSvd().fit(Problem(kernel), point.rank).statistics["relative_error"]
        assert reached == pytest.approx(optimum, abs=1e-7)


def least_squares_limit(problem: Problem, rank: int, sweeps: int) -> float:
    """Alternating dense least squares over both stages, from the plain optimum."""
    kernel, sigma = problem.kernel[0].numpy(), problem.norm.covariance[0].numpy()
    outputs, inputs, high, wide = kernel.shape
    values, vectors = np.linalg.eigh(sigma)
    root = (vectors * np.sqrt(values.clip(0))).reshape(inputs * high, wide, -1)
    target = kernel.reshape(outputs, -1) @ root.reshape(inputs * high * wide, -1)
    unfolded = kernel.transpose(1, 2, 0, 3).reshape(inputs * high, -1)
    vertical = np.linalg.svd(unfolded, full_matrices=False)[0][:, :rank]
    for _ in range(sweeps):
        design = np.einsum("ar,abn->rbn", vertical, root).reshape(rank * wide, -1)
        horizontal = (target @ np.linalg.pinv(design)).reshape(outputs, rank, wide)
        system = np.einsum("trb,abn->tnar", horizontal, root).reshape(target.size, -1)
        vertical = np.linalg.lstsq(system, target.reshape(-1), rcond=None)[0].reshape(inputs * high, rank)
    design = np.einsum("ar,abn->rbn", vertical, root).reshape(rank * wide, -1)
    residual = target - target @ np.linalg.pinv(design) @ design
    return float(np.linalg.norm(residual) / np.linalg.norm(target))


def test_covariance_norm_reaches_the_limit_of_dense_alternation() -> None:
    problem = Problem(power_law_kernel(1, 8, 5, 2, 3), Norm(covariance(1, 30)))
    ours = SpatialSvd(max_steps=3000, rtol=1e-13, cg_steps=20).fit(problem, (4,)).statistics["relative_error"]
    assert ours == pytest.approx(least_squares_limit(problem, 4, 400), rel=1e-4)


@pytest.mark.parametrize("kernel", [(), (3,), (1, 1), (3, 1), (1, 3), (3, 3, 3)], ids=str)
def test_other_kernels_are_refused(kernel: tuple[int, ...]) -> None:
    problem = Problem(normal(1, 6, 5, *kernel))
    for decomposer, rank in ((SpatialSvd(), (2,)), (Tucker2Spatial(), (2, 2, 2))):
        assert not decomposer.curve(problem)
        with pytest.raises(ValueError, match="two spatial axes"):
            decomposer.structure(problem.shape, rank)


def test_hybrid_with_full_channels_is_the_spatial_svd() -> None:
    problem = PROBLEMS["covariance"]
    hybrid = Tucker2Spatial().fit(problem, (12, 8, 6))
    assert [stage.weight.shape[3:] for stage in hybrid.value.stages] == [(3, 1), (1, 3)]
    plain = SpatialSvd(rtol=Tucker2Spatial().rtol).fit(problem, (6,))
    assert hybrid.statistics["relative_error"] == pytest.approx(plain.statistics["relative_error"], rel=0.01)


def test_hybrid_with_full_middle_is_tucker2() -> None:
    problem = PROBLEMS["covariance"]
    patient = {"max_steps": 300, "rtol": 1e-9, "cg_steps": 10}
    hybrid = Tucker2Spatial(**patient).fit(problem, (5, 3, 9)).statistics["relative_error"]
    tucker = Tucker2(**patient).fit(problem, (5, 3)).statistics["relative_error"]
    assert hybrid == pytest.approx(tucker, rel=1e-3)


def test_hybrid_refines_its_start() -> None:
    for norm in (Norm(), Norm(covariance(1, 144))):
        problem = Problem(power_law_kernel(1, 16, 16, 3, 3, decay=0.4), norm)
        errors = Tucker2Spatial(max_steps=20).fit(problem, (8, 8, 10)).statistics["errors"]
        assert errors[-1] < 0.995 * errors[0]


def test_asymmetric_kernels_keep_their_taps() -> None:
    problem = Problem(power_law_kernel(1, 6, 5, 2, 4), Norm(covariance(1, 40)))
    assert SpatialSvd().fit(problem, (3,)).value.shapes == SpatialSvd().structure(problem.shape, (3,))
    chain = Tucker2Spatial().fit(problem, (4, 3, 5)).value
    assert [shape.kernel_size for shape in chain.shapes] == [(1, 1), (2, 1), (1, 4), (1, 1)]
    assert torch.isfinite(chain.to_kernel()).all()


def test_curve_of_the_hybrid_offers_chains_that_are_smaller_than_the_kernel() -> None:
    method, problem = Tucker2Spatial(), Problem(power_law_kernel(1, 48, 40, 3, 3), rank_multiple=4)
    sizes = [
        sum(stage.parameters for stage in method.structure(problem.shape, point.rank)) / problem.shape.parameters
        for point in method.curve(problem)
    ]
    assert min(sizes) < 0.2
    assert sum(size < 1 for size in sizes) > 0.7 * len(sizes)
