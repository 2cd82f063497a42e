# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A kernel with its columns split into those that are combined and those that are kept, and its norm likewise.

Channels are combined and taps kept for Tucker-2; channels with vertical taps are combined and horizontal taps kept for
the spatial SVD. Letters are those of the table of notation in lowrank_plugin/README.md; the columns are A x B here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_hooks import Norm, Problem
from lowrank_plugin.solvers.parts.linear_algebra import row_products
from lowrank_plugin.solvers.two_block.memory import ROWS

_RIDGE = 8.0
"""Ridge on the covariance in units of the rounding error of its dtype, relative to its mean eigenvalue."""


@dataclass(frozen=True)
class Folded:
    """A kernel and its covariance with split columns, and what all steps share.

    The covariance carries a ridge at its rounding level, so that every system is definite. All errors here are
    measured with it and are therefore upper bounds.

    >>> folded = fold(Problem(torch.ones(1, 6, 4, 3, 3)), 1)
    >>> folded.kernel.shape, folded.covariance, float(folded.energy)
    (torch.Size([1, 6, 4, 9]), None, 216.0)

    :param kernel: W, [G, T, A, B].
    :param covariance: without the ridge, [G, A*B, A*B]; None for the identity.
    :param ridge: [G, 1, 1], zero without a covariance.
    :param weighted: W times the covariance, [G, T, A*B].
    :param means: the covariance averaged over the kept columns, [G, A, A], and over the combined ones, [G, B, B], with
        the ridge; None for the identity.
    :param energy: squared norm of W, float64 [G].
    """

    kernel: Tensor
    covariance: Tensor | None
    ridge: Tensor
    weighted: Tensor
    means: tuple[Tensor, Tensor] | None
    energy: Tensor

    @classmethod
    def of(
        cls, kernel: Tensor, covariance: Tensor | None, ridge: Tensor, weighted: Tensor, energy: Tensor | None = None
    ) -> Folded:
        """Work out the mean blocks and, unless it is given, the energy.

        :param kernel: [G, T, A, B].
        :param covariance: [G, A*B, A*B]; None for the identity.
        :param ridge: [G, 1, 1].
        :param weighted: [G, T, A*B].
        :param energy: float64 [G]; that of a problem this one is a part of, where there is one.
        """
        if energy is None:
            energy = row_products(weighted, kernel.flatten(2)).sum(dim=1)
        if covariance is None:
            return cls(kernel, None, ridge, weighted, None, energy)
        groups, _, a, b = kernel.shape
        blocks = covariance.reshape(groups, a, b, a, b)
        combined = _ridged(blocks.diagonal(dim1=2, dim2=4).mean(dim=3), ridge)
        kept = _ridged(blocks.diagonal(dim1=1, dim2=3).mean(dim=3), ridge)
        return cls(kernel, covariance, ridge, weighted, (combined, kept), energy)

    def apply(self, matrix: Tensor) -> Tensor:
        """Multiply [G, n, A*B] by the covariance with its ridge."""
        if self.covariance is None:
            return matrix
        return torch.baddbmm(self.ridge * matrix, matrix, self.covariance)

    def squared(self, matrix: Tensor) -> Tensor:
        """The squared norm of [G, n, A*B] with the ridge, [G], in half the time of :meth:`apply`."""
        plain = matrix.square().sum(dim=(1, 2))
        if self.covariance is None:
            return plain
        return Norm(self.covariance).squared(matrix) + self.ridge.flatten() * plain

    def history(self, errors: Sequence[float]) -> list[float]:
        """Squared errors as relative errors."""
        energy = float(self.energy.sum())
        return [math.sqrt(error / energy) if energy > 0 else 0.0 for error in errors]

    def norm_squared(self) -> float:
        """The squared norm of W without the ridge."""
        extra = self.ridge.double().flatten() * row_products(self.kernel, self.kernel).sum(dim=1)
        return float((self.energy - extra).sum())

    def gram(self, basis: Tensor, dtype: torch.dtype, whole: bool = True) -> Tensor:
        r"""The covariance with its ridge between the columns of :math:`P^\top`, block by block.

        :param basis: U, [G, A, R], orthonormal columns.
        :param dtype: of the result.
        :param whole: fill what is below the diagonal, too; else it is undefined.
        :return: [G, R*B, R*B].
        """
        groups, _, a, b = self.kernel.shape
        rank = basis.shape[2]
        if self.covariance is None:
            return torch.eye(rank * b, dtype=dtype, device=basis.device).repeat(groups, 1, 1)
        gram = torch.empty(groups, rank * b, rank * b, dtype=dtype, device=basis.device)
        block = max(1, min(ROWS // b, -(-rank // 2)))
        for begin in range(0, rank, block):
            end = min(begin + block, rank)
            # [r, A] @ [A, B*A*B]: the covariance is symmetric, so its leading index is contracted where it lies.
            rows = basis[:, :, begin:end].mT @ self.covariance.reshape(groups, a, -1)
            seen = project(rows.reshape(groups, -1, a * b), basis[:, :, begin:])
            gram[:, begin * b : end * b, begin * b :] = seen
            if whole:
                gram[:, end * b :, begin * b : end * b] = seen[:, :, (end - begin) * b :].mT
        # P has orthonormal rows, so the ridge is the same as on the whole covariance.
        gram.diagonal(dim1=1, dim2=2).add_(self.ridge[:, 0].to(dtype))
        return gram


def fold(problem: Problem, combined: int) -> Folded:
    """Split the columns of a problem in canonical form.

    >>> [tuple(fold(Problem(torch.ones(1, 6, 4, 3, 3)), combined).kernel.shape) for combined in (1, 2)]
    [(1, 6, 4, 9), (1, 6, 12, 3)]

    :param problem: kernel [G, T, S, *kernel], norm without a gradient.
    :param combined: how many of the axes S, *kernel are combined; the others are kept.
    :return: the folded problem.
    """
    kernel = problem.kernel.flatten(2 + combined).flatten(2, 1 + combined)
    matrix, covariance = kernel.flatten(2), problem.norm.covariance
    if covariance is None:
        return Folded.of(kernel, None, kernel.new_zeros(len(kernel), 1, 1, dtype=torch.float64), matrix)
    info = torch.finfo(kernel.dtype)
    covariance = covariance.to(kernel)
    mean = covariance.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    ridge = (_RIDGE * info.eps * mean).clamp_min(info.tiny)
    return Folded.of(kernel, covariance, ridge, torch.baddbmm(ridge * matrix, matrix, covariance))


def project(rows: Tensor, basis: Tensor) -> Tensor:
    r"""Multiply rows by :math:`U \otimes I_B` from the right.

    >>> project(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), torch.tensor([[[1.0], [10.0]]]))
    tensor([[[31., 42.]]])

    :param rows: [G, n, A*B].
    :param basis: U, [G, A, R].
    :return: [G, n, R*B].
    """
    groups, n, columns = rows.shape
    a, rank = basis.shape[1:]
    b = columns // a
    # One product with n*B rows; a broadcast one would be n products with B rows, many times slower.
    flat = rows.reshape(groups, n, a, b).transpose(2, 3).reshape(groups, n * b, a) @ basis
    return flat.reshape(groups, n, b, rank).transpose(2, 3).reshape(groups, n, rank * b)


def _ridged(block: Tensor, ridge: Tensor) -> Tensor:
    return block + ridge * torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)
