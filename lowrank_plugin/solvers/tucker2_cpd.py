# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""TKD-CPD: a CP decomposition of the core of a Tucker-2 decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lowrank_hooks import (
    ErrorNorm,
    Factorization,
    KernelShape,
    Norm,
    NormKind,
    Point,
    Problem,
    Rank,
    Solution,
    Stage,
    StageShape,
    Status,
)
from lowrank_plugin.solvers.cpd import Cpd
from lowrank_plugin.solvers.cpd import lower as lower_cp
from lowrank_plugin.solvers.parts.balance import balance
from lowrank_plugin.solvers.parts.checks import check_dtype, is_finite
from lowrank_plugin.solvers.parts.fit import Fit, fitted
from lowrank_plugin.solvers.parts.ranks import check_rank, rank_grid
from lowrank_plugin.solvers.tucker2 import Tucker2


@dataclass(frozen=True)
class Tucker2Cpd:
    r"""1x1 to R_S, 1x1 to R, depthwise kxk, 1x1 to R_T, 1x1 to the outputs; rank (R_T, R_S, R).

    The channels are first compressed by :class:`Tucker2`, then the small core is decomposed by :class:`Cpd` ([1],
    section 4), which makes it the fast way to a low rank of a large kernel. Two adjacent 1x1 convolutions become one
    wherever that is no larger, as there is nothing between them: R_S and S are then seen in the cost no more.

    Differences from the paper: the merging; the core is decomposed in the norm that the problem's norm induces on it;
    the slack applies to the residual of the core.

    [1] Phan et al., "Stable Low-Rank Tensor Decomposition for Compression of Convolutional Neural Network", ECCV 2020,
    arXiv:2008.05441.

    >>> shape = KernelShape(1, 64, 64, (3, 3))
    >>> [s.out_channels for s in Tucker2Cpd().structure(shape, (8, 8, 24))]
    [8, 24, 24, 8, 64]
    >>> [s.out_channels for s in Tucker2Cpd().structure(shape, (32, 32, 24))]
    [24, 24, 64]

    :param tucker2: solves the first step.
    :param cpd: solves the second.
    :param curve_points: about how many pairs of channel ranks are on the curve.
    """

    tucker2: Tucker2 = field(default_factory=Tucker2)
    cpd: Cpd = field(default_factory=Cpd)
    curve_points: int = 3

    def structure(self, shape: KernelShape, rank: Rank) -> tuple[StageShape, ...]:
        """See :meth:`lowrank_hooks.Decomposer.structure`."""
        rank_out, rank_in, width = _lower(shape, rank)
        ones = (1,) * len(shape.kernel_size)
        stages = [StageShape(width, width, shape.kernel_size, groups=width)]
        if _apart(shape.in_channels, rank_in, width):
            first = [StageShape(rank_in, shape.in_channels, ones), StageShape(width, rank_in, ones)]
        else:
            first = [StageShape(width, shape.in_channels, ones)]
        if _apart(shape.out_channels, rank_out, width):
            last = [StageShape(rank_out, width, ones), StageShape(shape.out_channels, rank_out, ones)]
        else:
            last = [StageShape(shape.out_channels, width, ones)]
        return (*first, *stages, *last)

    def curve(self, problem: Problem) -> Sequence[Point]:
        """Errors with a few sweeps on the cores of several Tucker-2 decompositions of equal shares of both modes.

        See :meth:`lowrank_hooks.Decomposer.curve`.
        """
        check_dtype(problem)
        shape = problem.shape
        if shape.taps == 1 or not shape.kernel_size or not is_finite(problem):
            return []
        points = []
        energy = float(problem.energy)
        quick = replace(self.cpd, curve_points=2)
        multiple = problem.rank_multiple
        for rank_in in rank_grid(max(1, shape.in_channels // 2), multiple, self.curve_points):
            rank_out = -(-rank_in * shape.out_channels // (shape.in_channels * multiple)) * multiple
            rank_out = min(shape.out_channels, max(1, rank_out))
            if rank_out > rank_in * shape.taps or rank_in > rank_out * shape.taps:
                continue
            core = self._core(problem, rank_out, rank_in)
            if core is None:
                continue
            left = max(energy - float(core.problem.energy), 0.0)
            for point in quick.curve(core.problem):
                error = left + point.error**2 * float(core.problem.energy)
                relative = (error / energy) ** 0.5 if energy > 0 else 0.0
                points.append(Point((rank_out, rank_in, *point.rank), min(1.0, relative)))
        return points

    def fit(self, problem: Problem, rank: Rank) -> Solution:
        """See :meth:`lowrank_hooks.Decomposer.fit`."""
        return fitted(problem, rank, _lower, self._solve, self.peak_bytes)

    def _solve(self, problem: Problem, rank: tuple[int, int, int]) -> Fit:
        core = self._core(problem, *rank[:2])
        inner = None if core is None else self.cpd.fit(core.problem, rank[2:])
        if core is None or inner is None or inner.value is None:
            return Fit(None, Status.NONFINITE_INPUT)
        chain = balance(_chain(core, inner.value, problem.shape, rank))
        own = {"relative_error", "seconds", "peak_bytes"}
        kept = {key: value for key, value in inner.statistics.items() if key not in own}
        return Fit(chain, inner.status, statistics={**kept, "core_error": inner.statistics["relative_error"]})

    def peak_bytes(self, shape: KernelShape, rank: Rank, kind: NormKind, itemsize: int) -> int:
        """See :meth:`lowrank_hooks.PeakMemory.peak_bytes`."""
        rank_out, rank_in, width = _lower(shape, rank)
        core = KernelShape(shape.groups, rank_out, rank_in, shape.kernel_size)
        columns = rank_in * shape.taps
        weighted = kind.weighted
        own = rank_out * columns + weighted * columns * (columns + shape.in_channels * shape.taps)
        inner = self.cpd.peak_bytes(core, (width,), kind, itemsize)
        first = self.tucker2.peak_bytes(shape, (rank_out, rank_in), kind, itemsize)
        return max(first, 27 * (shape.groups * itemsize * own + inner) // 25)

    def _core(self, problem: Problem, rank_out: int, rank_in: int) -> _Core | None:
        """The Tucker-2 core as a problem of its own."""
        solution = self.tucker2.fit(problem, (rank_out, rank_in))
        if solution.value is None:
            return None
        shape = problem.shape
        left, right, middle = None, None, problem.kernel
        for stage in solution.value.stages:
            if stage.weight[0, 0, 0].numel() > 1:
                middle = stage.weight
        stages = solution.value.stages
        if stages[0].weight is not middle:
            right = stages[0].weight.flatten(2).mT
        if stages[-1].weight is not middle:
            left = stages[-1].weight.flatten(2)
        core = middle.flatten(3)
        if right is not None:
            right, core = _orthonormal(right, core, "gtpk,gqp->gtqk")
        if left is not None:
            left, core = _orthonormal(left, core, "gpsk,gqp->gqsk")
        norm = _induced(problem.norm, left, right, shape)
        return _Core(replace(problem, kernel=core.unflatten(3, shape.kernel_size), norm=norm), left, right)


@dataclass(frozen=True)
class _Core:
    """A Tucker-2 decomposition.

    :param problem: the core, in the norm that the kernel's norm induces on it.
    :param left: orthonormal [G, T, R_T], or None where R_T = T.
    :param right: orthonormal [G, S, R_S], or None where R_S = S.
    """

    problem: Problem
    left: Tensor | None
    right: Tensor | None


def _orthonormal(factor: Tensor, core: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    basis, triangle = torch.linalg.qr(factor)
    return basis, torch.einsum(rule, core, triangle)


def _induced(norm: ErrorNorm, left: Tensor | None, right: Tensor | None, shape: KernelShape) -> ErrorNorm:
    covariance, gradient = norm.covariance, norm.gradient
    if covariance is not None and right is not None:
        taps = (shape.in_channels, shape.taps)
        blocks = torch.einsum("gskc,gsp->gpkc", covariance.to(right).unflatten(1, taps), right).flatten(1, 2)
        covariance = torch.einsum("grsk,gsp->grpk", blocks.unflatten(2, taps), right).flatten(2)
        covariance = (covariance + covariance.mT) / 2
    if gradient is not None and left is not None:
        gradient = left.mT @ gradient.to(left) @ left
        gradient = (gradient + gradient.mT) / 2
    return Norm(covariance, gradient)


def _chain(core: _Core, inner: Factorization, shape: KernelShape, rank: tuple[int, int, int]) -> Factorization:
    """The stages outside the core, multiplied into their neighbours where that makes the chain no larger."""
    first, middle, last = inner.stages
    before, after = [first], [last]
    ones = (1,) * len(shape.kernel_size)
    if core.right is not None:
        before.insert(0, Stage(core.right.mT.reshape(*core.right.mT.shape, *ones).contiguous()))
    if core.left is not None:
        after.append(Stage(core.left.reshape(*core.left.shape, *ones)))
    if len(before) == 2 and not _apart(shape.in_channels, rank[1], rank[2]):
        before = [Stage(Factorization(tuple(before)).to_kernel())]
    if len(after) == 2 and not _apart(shape.out_channels, rank[0], rank[2]):
        after = [Stage(Factorization(tuple(after)).to_kernel())]
    return Factorization((*before, middle, *after))


def _apart(channels: int, rank: int, width: int) -> bool:
    """Whether 1x1 convolutions channels-rank-width are smaller than one from channels to width."""
    return rank * (channels + width) < channels * width


def _lower(shape: KernelShape, rank: Rank) -> tuple[int, int, int]:
    """The ranks, checked and lowered to the largest useful ones."""
    check_rank(rank, 3, "tucker2_cpd")
    lower_cp(shape, rank[2:])
    rank_out = min(int(rank[0]), shape.out_channels, shape.in_channels * shape.taps)
    rank_in = min(int(rank[1]), shape.in_channels, shape.out_channels * shape.taps)
    rank_out, rank_in = min(rank_out, rank_in * shape.taps), min(rank_in, rank_out * shape.taps)
    core = KernelShape(1, rank_out, rank_in, shape.kernel_size)
    return rank_out, rank_in, lower_cp(core, rank[2:])
