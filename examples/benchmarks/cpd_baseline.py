# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What the CP benchmark compares with: plain alternating least squares and rounding to int8."""

from __future__ import annotations

import torch
from torch import Tensor

Triple = tuple[Tensor, Tensor, Tensor]


def plain_als(kernel: Tensor, rank: int, sweeps: int, seed: int = 0) -> tuple[Triple, float]:
    """Alternating least squares from a random start; two products with the kernel a sweep.

    :param kernel: float32 [T, S, K].
    :return: the factors, float64, inputs and taps with unit columns as usual, and the relative residual.
    """
    generator = torch.Generator().manual_seed(seed)
    b, c = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in kernel.shape[1:])
    energy = float(kernel.square().sum(dtype=torch.float64))
    for _ in range(sweeps):
        mixed = (b.float()[:, None] * c.float()[None]).flatten(0, 1)
        a = _solve((kernel.flatten(1) @ mixed).double(), (b.T @ b) * (c.T @ c))
        projected = (a.float().T @ kernel.flatten(1)).view(rank, *kernel.shape[1:])
        gram = a.T @ a
        b = _solve(torch.einsum("rsk,kr->sr", projected, c.float()).double(), gram * (c.T @ c))
        b = b / b.norm(dim=0)
        rhs = torch.einsum("rsk,sr->kr", projected, b.float()).double()
        gram = gram * (b.T @ b)
        c = _solve(rhs, gram)
        error = energy - float((c * (2 * rhs - c @ gram)).sum())
        norm = c.norm(dim=0)
        a, c = a * norm, c / norm
    return (a, b, c), (max(error, 0.0) / energy) ** 0.5


def _solve(rhs: Tensor, gram: Tensor) -> Tensor:
    gram = gram + 1e-12 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.cholesky_solve(rhs.T, torch.linalg.cholesky(gram)).T


def round_to_int8(factor: Tensor) -> Tensor:
    """Symmetric rounding with one step for the whole tensor."""
    step = factor.abs().amax() / 127
    return (factor / step).round() * step


def dense(factors: Triple) -> Tensor:
    """[T, S * K], float64."""
    return torch.einsum("tr,sr,kr->tsk", *factors).flatten(1)


def rounding_error(factors: Triple, covariance: Tensor, energy: float) -> float:
    """What int8 rounding of all factors adds to the output: root of the share of the output's variance."""
    change = dense(tuple(round_to_int8(factor) for factor in factors)) - dense(factors)  # type: ignore[arg-type]
    change = change.float()
    return (float(((change @ covariance) * change).sum(dtype=torch.float64)) / energy) ** 0.5
