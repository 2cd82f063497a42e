# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Problems with known answers, and the oracles that know them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowrank_hooks import Norm, Problem


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


@dataclass(frozen=True)
class Case:
    """One row of the table of problems.

    :param name: the test's id.
    :param problem: the problem, float64.
    """

    name: str
    problem: Problem


def _cases() -> list[Case]:
    """Small 3x3 problems in every norm, ordinary and awkward."""
    kernel = power_law_kernel(1, 12, 8, 3, 3)
    grouped = power_law_kernel(2, 6, 5, 3, 3)
    duplicated = torch.cat([kernel[:, :, :4], kernel[:, :, :4]], dim=2)
    moment = covariance(1, 12, seed=7, decay=0.5)
    dead = torch.diag(torch.tensor([1.0] * 9 + [0.0] * 3, dtype=torch.float64))[None]
    diagonal = torch.diag(torch.arange(72, 0, -1, dtype=torch.float64) ** -1.0)[None]
    return [
        Case("frobenius", Problem(kernel)),
        Case("covariance", Problem(kernel, Norm(covariance(1, 72)))),
        Case("two-sided", Problem(kernel, Norm(covariance(1, 72), moment))),
        Case("gradient-only", Problem(kernel, Norm(None, moment))),
        Case("dead-outputs", Problem(kernel, Norm(covariance(1, 72), dead))),
        Case("diagonal", Problem(kernel, Norm(diagonal))),
        Case("singular", Problem(kernel, Norm(singular_covariance(1, 72, 20)))),
        Case("rank-one", Problem(kernel, Norm(singular_covariance(1, 72, 1)))),
        Case("grouped", Problem(grouped, Norm(covariance(2, 45)))),
        Case("grouped-frobenius", Problem(grouped)),
        Case("duplicated-channels", Problem(duplicated, Norm(covariance(1, 72)))),
        Case("many-outputs", Problem(power_law_kernel(1, 40, 3, 3, 3), Norm(covariance(1, 27)))),
        Case("one-input", Problem(power_law_kernel(1, 6, 1, 3, 3), Norm(covariance(1, 9)))),
        Case("one-output", Problem(power_law_kernel(1, 1, 6, 3, 3), Norm(covariance(1, 54)))),
        Case("float32", Problem(kernel.float(), Norm(covariance(1, 72).float()))),
    ]


CASES = _cases()


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
