# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Tucker-2: a small convolution between two channel mixings, in every norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

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
from lowrank_plugin.solvers.svd import Svd, project_outputs
from lowrank_plugin.solvers.two_block.folding import fold
from lowrank_plugin.solvers.two_block.hooi import Hooi, hooi_size
from lowrank_plugin.solvers.two_block.iteration import TwoBlock, whiten
from lowrank_plugin.solvers.two_block.memory import fit_bytes
from lowrank_plugin.solvers.two_block.start import leading_outputs, nested_basis


@dataclass(frozen=True)
class Tucker2:
    r"""1x1 into R_S channels, a kxk convolution from R_S to R_T, 1x1 out of them; rank (R_T, R_S) as in TensorLy.

    In a covariance norm it is the distribution-aware Tucker-2 of [1], solved by two-block variable projection
    (:mod:`lowrank_plugin.solvers.two_block`); in the plain norm it is HOOI ([2]) on Gram matrices. A mode whose rank
    is full gets no 1x1 convolution: with R_S = S the result is the global optimum of :class:`Svd`.

    It is a local optimiser: the limit depends on the start, which is the HOSVD of the whitened kernel, in a covariance
    norm without the outputs that would be cut off if no inputs were combined. In practice random starts reach the same
    limit.

    [1] Kalle et al., "Distribution-Aware Tensor Decomposition for Compression of Convolutional Neural Networks",
    NeurIPS 2025, arXiv:2511.04494, algorithm 2.
    [2] De Lathauwer et al., SIAM J. Matrix Anal. Appl. 21(4), 2000, algorithm 4.2.

    >>> problem = Problem(torch.ones(1, 6, 4, 3, 3))
    >>> Tucker2().structure(problem.shape, (2, 1))
    (StageShape(out_channels=1, in_channels=4, kernel_size=(1, 1), groups=1),
     StageShape(out_channels=2, in_channels=1, kernel_size=(3, 3), groups=1),
     StageShape(out_channels=6, in_channels=2, kernel_size=(1, 1), groups=1))
    >>> solution = Tucker2().fit(problem, (1, 1))
    >>> solution.status.name, round(solution.statistics["relative_error"], 4)
    ('CONVERGED', 0.0)

    :param max_steps: the most sweeps.
    :param rtol: relative decrease of the squared error below which the iteration ends; an eightieth of it in the plain
        norm, and three times the sweeps, which are cheap there.
    :param cg_steps: conjugate-gradient steps a sweep (covariance norms only).
    :param relaxation: over-relaxation of each update of the input factor, from 1 to below 2 (covariance norms only).
    :param curve_points: about how many ranks of each mode are on the curve.
    """

    max_steps: int = 6
    rtol: float = 2.5e-2
    cg_steps: int = 1
    relaxation: float = 1.6
    curve_points: int = 16

    def structure(self, shape: KernelShape, rank: Rank) -> tuple[StageShape, ...]:
        """See :meth:`lowrank_hooks.Decomposer.structure`."""
        rank_out, rank_in = lower(shape, rank)
        ones = (1,) * len(shape.kernel_size)
        stages = [StageShape(rank_out, rank_in, shape.kernel_size)]
        if rank_in < shape.in_channels:
            stages.insert(0, StageShape(rank_in, shape.in_channels, ones))
        if rank_out < shape.out_channels:
            stages.append(StageShape(shape.out_channels, rank_out, ones))
        return tuple(stages)

    def curve(self, problem: Problem) -> Sequence[Point]:
        """Errors of the whitened HOSVD at a grid of free rank pairs: in practice upper bounds of what a fit reaches.

        See :meth:`lowrank_hooks.Decomposer.curve`.
        """
        check_dtype(problem)
        if problem.shape.taps == 1 or not is_finite(problem):
            return []
        reduced = canonical(problem).problem
        multiple, shape = problem.rank_multiple, problem.shape
        inner = rank_grid(min(shape.in_channels, shape.out_channels * shape.taps), multiple, self.curve_points)
        points = []
        for rank_in, tails in zip(inner, _tails(reduced, inner), strict=True):
            largest = min(shape.out_channels, rank_in * shape.taps, len(tails) - 1)
            for rank_out in rank_grid(largest, multiple, self.curve_points):
                if lower(shape, (rank_out, rank_in)) == (rank_out, rank_in):
                    points.append(Point((rank_out, rank_in), tails[rank_out]))
        return points

    def fit(self, problem: Problem, rank: Rank) -> Solution:
        """See :meth:`lowrank_hooks.Decomposer.fit`."""
        solve = from_canonical(partial(self._solve, problem.shape))
        return fitted(problem, rank, lower, solve, self.peak_bytes)

    def peak_bytes(self, shape: KernelShape, rank: Rank, kind: NormKind, itemsize: int) -> int:
        """See :meth:`lowrank_hooks.PeakMemory.peak_bytes`."""
        rank_out, rank_in = rank = lower(shape, rank)
        stages = self.structure(shape, rank)
        if rank_in >= shape.in_channels:
            svd = Svd().peak_bytes(shape, (rank_out,), kind, itemsize)
            return max(whole_fit(shape, stages, kind, itemsize), svd)
        if not kind.weighted:
            outputs = min(shape.out_channels, shape.in_channels * shape.taps)
            solving = shape.groups * itemsize * hooi_size(outputs, shape.in_channels, shape.taps, *rank)
        else:
            solving = fit_bytes(shape, shape.in_channels, rank_in, rank_out, itemsize)
        return whole_fit(shape, stages, kind, itemsize, solving)

    def _solve(self, shape: KernelShape, problem: Problem, rank: tuple[int, int]) -> Fit:
        """Solve a canonical problem; ``shape`` is that of the kernel as it was asked, which may have more outputs."""
        rank_out, rank_in = rank
        if rank_in >= shape.in_channels:
            if rank_out >= shape.out_channels:
                return Fit(Factorization((Stage(problem.kernel),)), Status.CONVERGED)
            chain, deficient = project_outputs(problem, rank_out)
            return Fit(chain, Status.RANK_DEFICIENT if deficient else Status.CONVERGED)
        solve = self._weighted if problem.norm.weighted else self._plain
        return solve(shape, problem, rank_out, rank_in)

    def _weighted(self, shape: KernelShape, problem: Problem, rank_out: int, rank_in: int) -> Fit:
        folded = fold(problem, 1)
        seen = leading_outputs(folded.kernel, folded.weighted, rank_out)
        start = nested_basis(seen, folded.means, rank_in)
        algorithm = TwoBlock(folded, start, rank_out, self.cg_steps, self.relaxation)
        outcome = iterate(algorithm, self.max_steps, self.rtol)
        state = outcome.state
        chain = _chain(shape, state.basis, state.left, state.core)
        return Fit(chain, outcome.status, folded.history(outcome.errors), folded.norm_squared())

    def _plain(self, shape: KernelShape, problem: Problem, rank_out: int, rank_in: int) -> Fit:
        folded = problem.kernel.flatten(3).transpose(2, 3).contiguous()
        squared = folded.flatten(2).square().sum(dim=2).sum(dim=1, dtype=torch.float64)
        algorithm = Hooi(folded, squared, rank_out, rank_in)
        outcome = iterate(algorithm, 3 * self.max_steps, self.rtol / 80)
        state, energy = outcome.state, float(squared.sum())
        errors = [(error / energy) ** 0.5 if energy > 0 else 0.0 for error in outcome.errors]
        return Fit(_chain(shape, state.basis, state.left, algorithm.core(state)), outcome.status, errors, energy)


def _chain(shape: KernelShape, basis: Tensor, left: Tensor | None, core: Tensor) -> Factorization:
    """Stages from U_S [G, S, R_S], U_T [G, T, R_T] (None for the identity) and the core [G, R_T, R_S, K]."""
    ones = (1,) * len(shape.kernel_size)
    stages = [
        Stage(basis.mT.reshape(len(basis), basis.shape[2], -1, *ones)),
        Stage(core.unflatten(3, shape.kernel_size)),
    ]
    if core.shape[1] < shape.out_channels:
        if left is None:
            left = torch.eye(core.shape[1], dtype=core.dtype, device=core.device).expand(len(core), -1, -1)
        stages.append(Stage(left.reshape(*left.shape, *ones)))
    return Factorization(tuple(stages))


def lower(shape: KernelShape, rank: Rank) -> tuple[int, int]:
    """The largest useful ranks (R_T, R_S) not above those asked for.

    >>> lower(KernelShape(1, 64, 32, (3, 3)), (100, 2))
    (18, 2)

    :param shape: the kernel's sizes.
    :param rank: (R_T, R_S).
    :return: the ranks that are used.
    :raises ValueError: for a kernel of one tap, or a rank that is not two positive numbers.
    """
    check_rank(rank, 2, "tucker2")
    if shape.taps == 1:
        msg = "tucker2 needs a kernel with more than one tap; for a linear or 1x1 layer use svd."
        raise ValueError(msg)
    rank_in = min(int(rank[1]), shape.in_channels, shape.out_channels * shape.taps)
    rank_out = min(int(rank[0]), shape.out_channels, rank_in * shape.taps)
    return rank_out, min(rank_in, rank_out * shape.taps)


def _tails(problem: Problem, inner: Sequence[int]) -> list[list[float]]:
    """For each inner rank the relative errors at every outer rank from 0 to T', by the HOSVD of the whitened kernel."""
    folded, taps = fold(problem, 1), problem.shape.taps
    # The factor of the whole rotated covariance contains that of every leading set of combinations.
    whitened, _ = whiten(folded, nested_basis(folded.kernel, folded.means))
    energy = folded.energy
    total = float(energy.sum())
    gram = whitened.new_zeros(whitened.shape[0], whitened.shape[2], whitened.shape[2])
    tails, done = [], 0
    for rank_in in inner:
        rows = whitened[:, done * taps : rank_in * taps]
        gram, done = gram + rows.mT @ rows, rank_in
        explained = torch.linalg.eigvalsh(gram).clamp_min(0).flip(1).cumsum(1)
        left = (energy[:, None] - explained).clamp_min(0).sum(dim=0)
        tails.append([1.0, *((left / total).sqrt().tolist() if total > 0 else [0.0] * left.numel())])
    return tails
