# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Problems with known answers, and the oracles that know them; the table begins with that of the conformance kit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lowrank_hooks import Norm, Problem
from lowrank_hooks.testing.problems import VARIANTS, Case, make_problem


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64).to(dtype)


def power_law_kernel(*shape: int, seed: int = 0, decay: float = 0.7, dtype: torch.dtype = torch.float64) -> Tensor:
    """A kernel [G, T, S, *kernel] with singular values like ``i ** -decay`` in every mode, as trained ones have."""
    kernel = normal(*shape, seed=seed)
    for axis in range(1, len(shape)):
        n = shape[axis]
        basis = torch.linalg.qr(normal(n, n, seed=seed + axis)).Q
        scale = torch.arange(1, n + 1, dtype=torch.float64) ** -decay
        kernel = (kernel.movedim(axis, -1) @ (basis * scale) @ basis.mT).movedim(-1, axis)
    return kernel.to(dtype)


def covariance(groups: int, n: int, seed: int = 0, decay: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A dense covariance [G, n, n] with eigenvalues that fall like ``i ** -(2 * decay)``."""
    basis = torch.linalg.qr(normal(groups, n, n, seed=seed + 100)).Q
    values = torch.arange(1, n + 1, dtype=torch.float64) ** (-2 * decay)
    return ((basis * values) @ basis.mT).to(dtype)


def singular_covariance(groups: int, n: int, rank: int, seed: int = 0) -> Tensor:
    """A covariance [G, n, n] of the given rank, float64."""
    factor = normal(groups, n, rank, seed=seed + 200)
    return factor @ factor.mT / rank


def exact_tucker(
    groups: int, outputs: int, inputs: int, kernel: tuple[int, ...], rank: tuple[int, int], seed: int = 0
) -> Tensor:
    """A kernel whose Tucker-2 ranks (R_T, R_S) are exactly as given, float64."""
    left = normal(groups, outputs, rank[0], seed=seed)
    core = normal(groups, rank[0], rank[1], *kernel, seed=seed + 1)
    right = normal(groups, inputs, rank[1], seed=seed + 2)
    return torch.einsum("gtq,gqp...,gsp->gts...", left, core, right)


def exact_cp(groups: int, outputs: int, inputs: int, kernel: tuple[int, ...], rank: int, seed: int = 0) -> Tensor:
    """A kernel of CP rank ``rank`` over outputs, inputs and taps, float64."""
    taps = int(np.prod(kernel)) if kernel else 1
    factors = [normal(groups, n, rank, seed=seed + i) for i, n in enumerate((outputs, inputs, taps))]
    dense = torch.einsum("gtr,gsr,gkr->gtsk", *factors)
    return dense.reshape(groups, outputs, inputs, *kernel)


def exact_spatial(groups: int, outputs: int, inputs: int, kernel: tuple[int, int], rank: int, seed: int = 0) -> Tensor:
    """A kernel that is a (kh x 1) convolution into ``rank`` channels and a (1 x kw) one out of them, float64."""
    vertical = normal(groups, rank, inputs, kernel[0], seed=seed)
    horizontal = normal(groups, outputs, rank, kernel[1], seed=seed + 1)
    return torch.einsum("grsh,gtrw->gtshw", vertical, horizontal)


def _cases() -> list[Case]:
    """3x3 kernels in every norm: the ordinary problems of the conformance kit, a size larger, and awkward ones."""
    ordinary = [Case(norm, make_problem(norm=norm, out_channels=12, in_channels=8)) for norm in VARIANTS]
    known = {case.name: case.problem for case in ordinary}
    plain, seen = known["frobenius"], known["covariance"]
    dead = torch.diag(torch.tensor([1.0] * 9 + [0.0] * 3, dtype=torch.float64))[None]
    diagonal = torch.diag(torch.arange(72, 0, -1, dtype=torch.float64) ** -1.0)[None]
    duplicated = torch.cat([seen.kernel[:, :, :4], seen.kernel[:, :, :4]], dim=2)
    awkward = {
        "gradient-only": replace(plain, norm=Norm(gradient=known["two-sided"].norm.gradient)),
        "dead-outputs": replace(seen, norm=Norm(seen.norm.covariance, dead)),
        "diagonal": replace(plain, norm=Norm(diagonal)),
        "rank-one": replace(plain, norm=Norm(singular_covariance(1, 72, 1))),
        "duplicated-channels": replace(seen, kernel=duplicated),
        "grouped": make_problem(norm="covariance", groups=2),
        "grouped-frobenius": make_problem(groups=2),
        "many-outputs": make_problem(norm="covariance", out_channels=40, in_channels=3),
        "one-input": make_problem(norm="covariance", in_channels=1),
        "one-output": make_problem(norm="covariance", out_channels=1),
        "float32": replace(seen, kernel=seen.kernel.float(), norm=seen.norm.map(torch.Tensor.float)),
    }
    return [*ordinary, *(Case(name, problem) for name, problem in awkward.items())]


CASES = _cases()
PROBLEMS = {case.name: case.problem for case in CASES}


def eckart_young(problem: Problem, rank: int) -> float:
    """The least relative error of any kernel whose T x SK matrix has the given rank: by NumPy, with explicit roots."""
    error = total = 0.0
    for group in range(problem.shape.groups):
        matrix = problem.matrix[group].double().numpy()
        for side, moment in ((1, problem.norm.covariance), (0, problem.norm.gradient)):
            if moment is not None:
                values, vectors = np.linalg.eigh(moment[group].double().numpy())
                root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
                matrix = matrix @ root if side else root @ matrix
        squares = np.linalg.svd(matrix, compute_uv=False) ** 2
        error, total = error + squares[rank:].sum(), total + squares.sum()
    return float(np.sqrt(error / total))
