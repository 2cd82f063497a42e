# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

r"""Two-block variable projection: a kernel seen through few combinations of its inputs.

Split the columns of W, [T, A*B], into those that are combined and those that are kept: channels and taps for Tucker-2,
(channels, vertical taps) and horizontal taps for the spatial SVD. Both approximate

.. math:: \hat W = X P, \quad P = U^\top \otimes I_B, \quad U \in R^{A \times R}, \quad \mathrm{rank}\, X \le Q

in the norm of the covariance :math:`\Sigma`. Given U, the best X follows at once from a reduced-rank regression; given
X, the best U from a linear system that conjugate gradients solve. The scheme of [1] (algorithm 2) has three blocks for
Tucker-2 and solves for U to 1e-10 each time; treating X as one block and stopping early reaches the same limit in a
small part of the time.

Notation: G groups (every tensor's first axis), T outputs, A x B columns, R the inner rank, Q the outer one.

[1] Kalle et al., "Distribution-Aware Tensor Decomposition for Compression of Convolutional Neural Networks",
NeurIPS 2025, arXiv:2511.04494.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_hooks import Norm, Problem
from lowrank_plugin.solvers.parts.linear_algebra import cholesky, conjugate_gradient, row_products
from lowrank_plugin.solvers.two_block.memory import ROWS

_RIDGE = 8.0
"""Ridge on the covariance in units of the rounding error of its dtype, relative to its mean eigenvalue."""

_ROUGH = 3e-5
"""Ridge on the projected covariance, relative to its mean diagonal entry, where it is factorised in float32."""

_ACCURATE = 1e-3
"""Share of the squared norm from which on a squared error found with :data:`_ROUGH` is accurate enough."""


@dataclass(frozen=True)
class Folded:
    """A kernel and its covariance with split columns, and what all steps share.

    The covariance carries a ridge at its rounding level, so that every system is definite. All errors here are
    measured with it and are therefore upper bounds.

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


def _ridged(block: Tensor, ridge: Tensor) -> Tensor:
    return block + ridge * torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)


@dataclass(frozen=True)
class Blocks:
    """The state: both blocks, X optimal for U.

    :param basis: U, [G, A, R], orthonormal columns.
    :param left: orthonormal [G, T, Q], or None where Q is T and the core holds all of X.
    :param core: [G, Q, R, B]; X is ``left @ core``.
    :param error: squared error of each group, float64 [G].
    """

    basis: Tensor
    left: Tensor | None
    core: Tensor
    error: Tensor


def regress(folded: Folded, basis: Tensor, rank_out: int, dtype: torch.dtype = torch.float64) -> Blocks:
    r"""The best X of rank ``rank_out`` for a given U: reduced-rank regression.

    With :math:`P \Sigma P^\top = L L^\top` and :math:`C = W \Sigma P^\top L^{-\top}`, the leading eigenvectors of
    :math:`C C^\top` are the left factor and their eigenvalues what is explained of the squared norm.

    :param folded: the problem.
    :param basis: U, [G, A, R], orthonormal columns.
    :param rank_out: Q.
    :param dtype: to work in; float32 takes half of the time and rounds the error up.
    :return: the state at this U.
    """
    groups, outputs, _, b = folded.kernel.shape
    whitened, lower = whiten(folded, basis, dtype)
    if rank_out >= outputs:
        left, explained = None, whitened.square().sum(dim=(1, 2))
    else:
        values, vectors = torch.linalg.eigh(whitened.mT @ whitened)
        left, explained = vectors[:, :, -rank_out:].flip(2), values[:, -rank_out:].sum(dim=1)
        whitened = whitened @ left
    core = (whitened if lower is None else torch.linalg.solve_triangular(lower.mT, whitened, upper=True)).mT
    core = core.to(basis).reshape(groups, -1, basis.shape[2], b)
    return Blocks(basis, None if left is None else left.to(basis), core, (folded.energy - explained).clamp_min(0))


def whiten(folded: Folded, basis: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor | None]:
    r""":math:`C^\top`, [G, R*B, T] in ``dtype``, and the Cholesky factor L, [G, R*B, R*B]; None for the identity."""
    seen = project(folded.weighted, basis).mT.to(dtype)
    if folded.covariance is None:
        return seen, None

    def gram() -> Tensor:
        gram = folded.gram(basis, dtype, whole=False)
        # Otherwise float64: the factor of a covariance with a condition of 1e7 and more.
        if dtype is not torch.float64:
            diagonal = gram.diagonal(dim1=1, dim2=2)
            diagonal.add_(_ROUGH * diagonal.mean(dim=1, keepdim=True))
        return gram

    lower = overwriting_cholesky(gram)
    return torch.linalg.solve_triangular(lower, seen, upper=False), lower


def overwriting_cholesky(matrix: Callable[[], Tensor]) -> Tensor:
    """The lower Cholesky factor of a matrix, the largest tensor of a fit, in the place of the matrix itself.

    :param matrix: makes the symmetric positive definite [G, n, n], of which only what is on and above the diagonal is
        read; called again if a larger ridge proves necessary.
    :return: [G, n, n].
    """
    lower = matrix().mT
    info = torch.empty(len(lower), dtype=torch.int32, device=lower.device)
    torch.linalg.cholesky_ex(lower, out=(lower, info))
    return cholesky(matrix()) if info.any() else lower


def project(rows: Tensor, basis: Tensor) -> Tensor:
    r"""Multiply rows by :math:`U \otimes I_B` from the right.

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


@dataclass(frozen=True)
class TwoBlock:
    """The alternation, for :func:`lowrank_plugin.solvers.parts.driver.iterate`.

    :param folded: the problem.
    :param start: U, [G, A, R], orthonormal columns.
    :param rank_out: Q.
    :param cg_steps: conjugate-gradient steps a sweep.
    :param relaxation: how far to go along each update of U, below 2. Conjugate gradients end at the minimum along
        their total step, on a parabola, so anything below 2 still lowers the error, and going beyond 1 makes up for
        the part of the improvement that X has yet to follow.
    """

    folded: Folded
    start: Tensor
    rank_out: int
    cg_steps: int
    relaxation: float = 1.0

    def init(self) -> Blocks:
        """The best X for the start; what is left to improve need not be known to many digits."""
        rough = regress(self.folded, self.start, self.rank_out, self.start.dtype)
        accurate = bool((rough.error >= _ACCURATE * self.folded.energy).all())
        return rough if accurate else regress(self.folded, self.start, self.rank_out)

    def step(self, state: Blocks) -> Blocks:
        """Lower the error over U, then solve for X."""
        basis = improve_basis(self.folded, state, self.cg_steps, self.relaxation)
        return regress(self.folded, torch.linalg.qr(basis).Q, self.rank_out)

    def error(self, state: Blocks) -> Tensor:
        """The squared error, a scalar."""
        return state.error.sum()


def improve_basis(folded: Folded, state: Blocks, steps: int, relaxation: float = 1.0) -> Tensor:
    r"""A better U for a given X, by conjugate gradients from the present one.

    The normal equations of [1] (algorithm 2, the update of :math:`U_S`), preconditioned with what they are where the
    covariance is the Kronecker product of its mean blocks.

    :param folded: the problem.
    :param state: where to start.
    :param steps: number of steps.
    :param relaxation: see :class:`TwoBlock`.
    :return: [G, A, R], no longer orthonormal.
    """
    groups, _, a, b = folded.kernel.shape
    taps_first = state.core.transpose(2, 3)
    by_rank = taps_first.flatten(1, 2)  # [G, Q*B, R]

    def spread(basis: Tensor) -> Tensor:
        return (by_rank @ basis.mT).reshape(groups, -1, b, a).transpose(2, 3).flatten(2)

    def contract(rows: Tensor) -> Tensor:
        return folded.apply(rows).reshape(groups, -1, a, b).permute(0, 2, 1, 3).flatten(2) @ by_rank

    outer, seen = None, by_rank
    if folded.means is not None:
        outer = cholesky(folded.means[0])
        seen = (folded.means[1][:, None] @ taps_first).flatten(1, 2)
    inner = cholesky(by_rank.mT @ seen)

    def precondition(residual: Tensor) -> Tensor:
        if outer is not None:
            residual = torch.cholesky_solve(residual, outer)
        return torch.cholesky_solve(residual.mT, inner).mT

    target = folded.kernel.flatten(2) if state.left is None else state.left.mT @ folded.kernel.flatten(2)
    change = conjugate_gradient(
        lambda basis: contract(spread(basis)),
        lambda basis: folded.squared(spread(basis)),
        contract(target - spread(state.basis)),
        precondition,
        steps,
    )
    return state.basis + relaxation * change
