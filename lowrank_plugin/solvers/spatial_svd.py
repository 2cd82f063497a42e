# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The spatial singular value decomposition: a column of taps, then a row of taps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_hooks import (
    Factorization,
    KernelShape,
    NormKind,
    Point,
    Problem,
    Rank,
    Solution,
    Stage,
    StageShape,
    Status,
)
from lowrank_plugin.solvers.parts.canonical import canonical
from lowrank_plugin.solvers.parts.checks import check_dtype, is_finite
from lowrank_plugin.solvers.parts.driver import iterate
from lowrank_plugin.solvers.parts.fit import Fit, fitted, from_canonical
from lowrank_plugin.solvers.parts.memory import whole_fit
from lowrank_plugin.solvers.parts.ranks import check_rank, rank_grid
from lowrank_plugin.solvers.two_block.folding import fold, project
from lowrank_plugin.solvers.two_block.iteration import TwoBlock, whiten
from lowrank_plugin.solvers.two_block.memory import fit_bytes
from lowrank_plugin.solvers.two_block.start import nested_basis


@dataclass(frozen=True)
class SpatialSvd:
    r"""A (kh x 1) convolution into R channels, then a (1 x kw) convolution out of them.

    The plain norm has the closed form of [1] (section 3.2), the singular value decomposition of the
    (S kh) x (T kw) unfolding. In a covariance norm the chain is :math:`\hat W = H (V \otimes I_{kw})`, solved by
    alternation (:mod:`lowrank_plugin.solvers.two_block`): given V the horizontal stage is an exact least-squares fit,
    given H the vertical one follows by conjugate gradients. Not in [1].

    It takes kernels with two spatial axes of more than one tap. The order is always vertical first.

    [1] Jaderberg, Vedaldi and Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions",
    BMVC 2014, arXiv:1405.3866, scheme 2.

    >>> problem = Problem(torch.ones(1, 6, 4, 3, 3))
    >>> SpatialSvd().structure(problem.shape, (2,))
    (StageShape(out_channels=2, in_channels=4, kernel_size=(3, 1), groups=1),
     StageShape(out_channels=6, in_channels=2, kernel_size=(1, 3), groups=1))
    >>> round(SpatialSvd().fit(problem, (1,)).statistics["relative_error"], 4)
    0.0

    :param max_steps: the most sweeps.
    :param rtol: relative decrease of the squared error below which the iteration ends.
    :param cg_steps: conjugate-gradient steps a sweep.
    :param relaxation: over-relaxation of each update of the vertical stage, from 1 to below 2.
    """

    max_steps: int = 6
    rtol: float = 3e-3
    cg_steps: int = 2
    relaxation: float = 1.6

    def structure(self, shape: KernelShape, rank: Rank) -> tuple[StageShape, ...]:
        """See :meth:`lowrank_hooks.Decomposer.structure`."""
        r = _lower(shape, rank)
        high, wide = shape.kernel_size
        return StageShape(r, shape.in_channels, (high, 1)), StageShape(shape.out_channels, r, (1, wide))

    def curve(self, problem: Problem) -> Sequence[Point]:
        """Every rank: errors of a fit's starting point, hence upper bounds; exact in the plain norm.

        See :meth:`lowrank_hooks.Decomposer.curve`.
        """
        check_dtype(problem)
        if not takes(problem.shape) or not is_finite(problem):
            return []
        largest = _lower(problem.shape, (problem.shape.in_channels * problem.shape.taps,))
        errors = _errors(canonical(problem).problem)
        return [Point((r,), errors[min(r, len(errors) - 1)]) for r in rank_grid(largest, problem.rank_multiple)]

    def fit(self, problem: Problem, rank: Rank) -> Solution:
        """See :meth:`lowrank_hooks.Decomposer.fit`."""
        return fitted(problem, rank, _lower, from_canonical(self._solve), self.peak_bytes)

    def peak_bytes(self, shape: KernelShape, rank: Rank, kind: NormKind, itemsize: int) -> int:
        """See :meth:`lowrank_hooks.PeakMemory.peak_bytes`."""
        r = _lower(shape, rank)
        combined = shape.in_channels * shape.kernel_size[0]
        if not kind.weighted:
            other = shape.parameters // (shape.groups * combined)
            gram = shape.groups * (25 * min(combined, other) ** 2 + 4096)
            solving = gram + (1 + (combined > other)) * shape.parameters * itemsize
        else:
            solving = fit_bytes(shape, combined, r, shape.out_channels, itemsize)
        return whole_fit(shape, self.structure(shape, rank), kind, itemsize, solving)

    def _solve(self, problem: Problem, rank: int) -> Fit:
        kernel = problem.kernel.flatten(2, 3)
        if not problem.norm.weighted:
            return Fit(_chain(problem, *_truncated(kernel, rank)), Status.CONVERGED)
        folded = fold(problem, 2)
        start = nested_basis(kernel, folded.means, rank)
        algorithm = TwoBlock(folded, start, kernel.shape[1], self.cg_steps, self.relaxation)
        outcome = iterate(algorithm, self.max_steps, self.rtol)
        chain = _chain(problem, outcome.state.basis, outcome.state.core)
        return Fit(chain, outcome.status, folded.history(outcome.errors), folded.norm_squared())


def takes(shape: KernelShape) -> bool:
    """Whether a kernel has two spatial axes of more than one tap each.

    >>> takes(KernelShape(1, 8, 8, (3, 3))), takes(KernelShape(1, 8, 8, (3, 1)))
    (True, False)

    :param shape: the kernel's sizes.
    :return: the answer.
    """
    return len(shape.kernel_size) == 2 and min(shape.kernel_size) > 1


def _lower(shape: KernelShape, rank: Rank) -> int:
    check_rank(rank, 1, "spatial_svd")
    if not takes(shape):
        msg = f"spatial_svd needs two spatial axes of more than one tap each, not {shape.kernel_size}; use svd or cpd."
        raise ValueError(msg)
    high, wide = shape.kernel_size
    return min(int(rank[0]), shape.in_channels * high, shape.out_channels * wide)


def _truncated(kernel: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """V and H for :func:`_chain`, one of them orthonormal, from the smaller Gram matrix of [G, T, S*kh, kw]."""
    outputs, combined, wide = kernel.shape[1:]
    if combined <= outputs * wide:
        basis = nested_basis(kernel, None, rank)
        return basis, project(kernel.flatten(2), basis).unflatten(2, (rank, wide))
    rows = kernel.transpose(2, 3).flatten(1, 2)  # [G, T*kw, S*kh]
    core = nested_basis(rows.mT.unsqueeze(3), None, rank)
    return rows.mT @ core, core.unflatten(1, (outputs, wide)).transpose(2, 3)


def _chain(problem: Problem, basis: Tensor, core: Tensor) -> Factorization:
    """Stages from V [G, S*kh, R] and H [G, T, R, kw]."""
    inputs, high = problem.kernel.shape[2:4]
    return Factorization((Stage(basis.mT.unflatten(2, (inputs, high)).unsqueeze(-1)), Stage(core.unsqueeze(3))))


def _errors(problem: Problem) -> list[float]:
    """Relative errors at every rank from 0, at the starting point of a fit."""
    kernel = problem.kernel.flatten(2, 3)
    if not problem.norm.weighted:
        rows = kernel.transpose(1, 2).flatten(2).double()
        explained = torch.linalg.eigvalsh(rows @ rows.mT).clamp_min(0).flip(1)
        energy = explained.sum(dim=1)
    else:
        folded = fold(problem, 2)
        whitened, _ = whiten(folded, nested_basis(kernel, folded.means))
        # One Cholesky factor serves every rank: that of the leading combinations is a leading block of it.
        explained, energy = whitened.square().sum(dim=2).unflatten(1, (kernel.shape[2], -1)).sum(dim=2), folded.energy
    total = float(energy.sum())
    tails = (energy[:, None] - explained.cumsum(1)).clamp_min(0).sum(dim=0)
    return [1.0, *((tails / total).sqrt().tolist() if total > 0 else [0.0] * tails.numel())]
