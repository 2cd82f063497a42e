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

Letters are those of the table of notation in lowrank_plugin/README.md; A x B columns are this file's own, combined and
kept, with R the inner rank and Q the outer one.

[1] Kalle et al., "Distribution-Aware Tensor Decomposition for Compression of Convolutional Neural Networks",
NeurIPS 2025, arXiv:2511.04494.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_plugin.solvers.parts.linear_algebra import cholesky, conjugate_gradient
from lowrank_plugin.solvers.two_block.folding import Folded, project

_ROUGH = 3e-5
"""Ridge on the projected covariance, relative to its mean diagonal entry, where it is factorised in float32."""

_ACCURATE = 1e-3
"""Share of the squared norm from which on a squared error found with :data:`_ROUGH` is accurate enough."""


@dataclass(frozen=True)
class Blocks:
    """The state: both blocks, X optimal for U.

    >>> from lowrank_hooks import Problem
    >>> from lowrank_plugin.solvers.two_block.folding import fold
    >>> folded = fold(Problem(torch.ones(1, 6, 4, 3, 3)), 1)
    >>> state = regress(folded, torch.full((1, 4, 1), 0.5), 2)
    >>> state.left.shape, state.core.shape
    (torch.Size([1, 6, 2]), torch.Size([1, 2, 1, 9]))

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

    >>> from lowrank_hooks import Problem
    >>> from lowrank_plugin.solvers.two_block.folding import fold
    >>> folded = fold(Problem(torch.ones(1, 6, 4, 3, 3)), 1)
    >>> round(float(regress(folded, torch.full((1, 4, 1), 0.5), 1).error), 4)  # the inputs are all alike
    0.0
    >>> round(float(regress(folded, torch.eye(4)[None, :, :1], 1).error), 4)  # three of four are not seen
    162.0

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
    r"""The kernel through U, seen in the norm: what is left to approximate in the plain norm.

    With :math:`P \Sigma P^\top = L L^\top`, it is :math:`C = W \Sigma P^\top L^{-\top}` of :func:`regress`.

    >>> from lowrank_hooks import Problem
    >>> from lowrank_plugin.solvers.two_block.folding import fold
    >>> whitened, lower = whiten(fold(Problem(torch.ones(1, 6, 4, 3, 3)), 1), torch.full((1, 4, 1), 0.5))
    >>> whitened.shape, lower
    (torch.Size([1, 9, 6]), None)

    :param folded: the problem.
    :param basis: U, [G, A, R], orthonormal columns.
    :param dtype: to work in.
    :return: :math:`C^\top`, [G, R*B, T], and L, [G, R*B, R*B]; None for the identity.
    """
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

    >>> overwriting_cholesky(lambda: torch.tensor([[[4.0, 2.0], [2.0, 5.0]]])).tril()
    tensor([[[2., 0.],
             [1., 2.]]])

    :param matrix: makes the symmetric positive definite [G, n, n], of which only what is on and above the diagonal is
        read; called again if a larger ridge proves necessary.
    :return: [G, n, n].
    """
    lower = matrix().mT
    info = torch.empty(len(lower), dtype=torch.int32, device=lower.device)
    torch.linalg.cholesky_ex(lower, out=(lower, info))
    return cholesky(matrix()) if info.any() else lower


@dataclass(frozen=True)
class TwoBlock:
    """The alternation, for :func:`lowrank_plugin.solvers.parts.driver.iterate`.

    >>> from lowrank_plugin.solvers.parts.driver import iterate
    >>> from lowrank_hooks import Problem
    >>> from lowrank_plugin.solvers.two_block.folding import fold
    >>> folded = fold(Problem(torch.ones(1, 6, 4, 3, 3)), 1)
    >>> outcome = iterate(TwoBlock(folded, torch.eye(4)[None, :, :1], 1, cg_steps=1), max_steps=3, rtol=1e-6)
    >>> [round(error, 2) for error in outcome.errors][:2]
    [162.0, 0.0]

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

    >>> from lowrank_hooks import Problem
    >>> from lowrank_plugin.solvers.two_block.folding import fold
    >>> folded = fold(Problem(torch.ones(1, 6, 4, 3, 3)), 1)
    >>> start = regress(folded, torch.eye(4)[None, :, :1], 1)
    >>> improve_basis(folded, start, steps=1).round(decimals=4)
    tensor([[[1.],
             [1.],
             [1.],
             [1.]]])

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
