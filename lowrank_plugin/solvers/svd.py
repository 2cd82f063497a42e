# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The singular value decomposition of a layer: its taps into few channels, then out of them."""

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
from lowrank_hooks.norm import BLOCK
from lowrank_plugin.solvers.parts.balance import balance
from lowrank_plugin.solvers.parts.canonical import Canonical, canonical
from lowrank_plugin.solvers.parts.checks import check_dtype, is_finite
from lowrank_plugin.solvers.parts.fit import Fit, fitted
from lowrank_plugin.solvers.parts.linear_algebra import overwriting_eigh
from lowrank_plugin.solvers.parts.memory import whole_fit
from lowrank_plugin.solvers.parts.ranks import check_rank, rank_grid


@dataclass(frozen=True)
class Svd:
    r"""A kxk convolution into R channels, then a 1x1 out of them; the plain low-rank pair for a linear layer.

    The global optimum in every norm, in closed form ([1], [2] and, for the plain norm, Eckart and Young):
    :math:`\hat W = U_R U_R^\top W` with the leading eigenvectors of :math:`W \Sigma W^\top`, so no root or inverse of
    the covariance is needed and a singular one is as good as any. It suits linear and 1x1 layers; for larger kernels
    the chains that also compress the input side usually reach a lower error for the same cost.

    [1] Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection", TPAMI 2016,
    arXiv:1505.06798, eq. 3-5.
    [2] Chen et al., "DRONE: Data-aware Low-rank Compression for Large NLP Models", NeurIPS 2021, theorem 1.

    >>> problem = Problem(torch.diag(torch.tensor([3.0, 2.0, 1.0]))[None])
    >>> [(point.rank, round(point.error, 4)) for point in Svd().curve(problem)]
    [((1,), 0.5976), ((2,), 0.2673), ((3,), 0.0)]
    >>> solution = Svd().fit(problem, (2,))
    >>> solution.status.name, round(solution.statistics["relative_error"], 4)
    ('CONVERGED', 0.2673)
    """

    def structure(self, shape: KernelShape, rank: Rank) -> tuple[StageShape, ...]:
        """See :meth:`lowrank_hooks.Decomposer.structure`."""
        r = _lower(shape, rank)
        ones = (1,) * len(shape.kernel_size)
        return StageShape(r, shape.in_channels, shape.kernel_size), StageShape(shape.out_channels, r, ones)

    def curve(self, problem: Problem) -> Sequence[Point]:
        """Every rank, exactly. See :meth:`lowrank_hooks.Decomposer.curve`."""
        check_dtype(problem)
        if not is_finite(problem):
            return []
        reduced = canonical(problem).problem
        # without the eigenvectors a quarter of the time, where there are thousands
        return _points(torch.linalg.eigvalsh(reduced.norm.gram(reduced.matrix)), problem.rank_multiple)

    def fit(self, problem: Problem, rank: Rank) -> Solution:
        """See :meth:`lowrank_hooks.Decomposer.fit`."""
        return fitted(problem, rank, _lower, _solve, self.peak_bytes)

    def peak_bytes(self, shape: KernelShape, rank: Rank, kind: NormKind, itemsize: int) -> int:
        """See :meth:`lowrank_hooks.PeakMemory.peak_bytes`."""
        columns = shape.in_channels * shape.taps
        outputs = min(shape.out_channels, columns)
        block = max(1, min(BLOCK, columns // 4))
        gram_bytes = 4096 + 8 * outputs**2 + 8 * block * outputs
        if kind.weighted:
            gram_bytes += 8 * outputs * columns + 8 * block * (columns + 2 * outputs)
        stages = self.structure(shape, rank)
        # Measuring, the first stage is turned beside the kernel in the making.
        turned = sum(stage.parameters for stage in stages) + 2 * stages[0].parameters + shape.out_channels * columns
        gram_bytes = shape.groups * max(gram_bytes, 4096 + 25 * outputs**2)
        return max(whole_fit(shape, stages, kind, itemsize, gram_bytes), 27 * shape.groups * itemsize * turned // 25)


def _lower(shape: KernelShape, rank: Rank) -> int:
    check_rank(rank, 1, "svd")
    return min(int(rank[0]), shape.out_channels, shape.in_channels * shape.taps)


def _solve(problem: Problem, rank: int) -> Fit:
    chain, deficient = Spectrum.of(problem).chain(rank)
    return Fit(chain, Status.RANK_DEFICIENT if deficient else Status.CONVERGED)


@dataclass(frozen=True)
class Spectrum:
    r"""The eigenvectors of :math:`W \Sigma W^\top` of a problem, from which its chains of all ranks follow.

    >>> spectrum = Spectrum.of(Problem(torch.diag(torch.tensor([3.0, 2.0, 1.0]))[None]))
    >>> [point.rank for point in spectrum.points(2)], [len(spectrum.chain(rank)[0].stages) for rank in (2, 3)]
    ([(2,), (3,)], [2, 2])

    :param reduction: the problem in canonical form, and the way back.
    :param values: ascending [G, T], float64.
    :param vectors: as columns [G, T, T], float64.
    """

    reduction: Canonical
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, problem: Problem) -> Spectrum:
        """Decompose a problem.

        :param problem: finite, in any norm.
        """
        reduction = canonical(problem)
        return cls(reduction, *_eigen(reduction.problem))

    def points(self, multiple: int) -> list[Point]:
        """The exact errors of ranks.

        :param multiple: what they should be multiples of.
        """
        return _points(self.values, multiple)

    def chain(self, rank: int) -> tuple[Factorization, bool]:
        """The best chain of a rank for the problem as it was asked.

        :param rank: R, at most the number of eigenvalues.
        :return: the chain, and whether the kernel's own rank is lower.
        """
        chain, deficient = _project(self.reduction.problem, self.values, self.vectors, rank)
        return balance(self.reduction.restore(chain)), deficient


def _points(values: Tensor, multiple: int) -> list[Point]:
    """The exact errors of ranks from ascending eigenvalues [G, T]."""
    tails = values.clamp_min(0).sum(dim=0).cumsum(0)
    total = float(tails[-1]) or 1.0
    full = len(tails)
    errors = [(float(tails[full - r - 1]) / total) ** 0.5 if r < full else 0.0 for r in range(full + 1)]
    return [Point((r,), errors[r]) for r in rank_grid(full, multiple)]


def project_outputs(problem: Problem, rank: int) -> tuple[Factorization, bool]:
    """The best approximation with ``rank`` output directions: kxk then 1x1.

    >>> chain, deficient = project_outputs(Problem(torch.diag(torch.tensor([3.0, 2.0]))[None]), 1)
    >>> chain.to_kernel().diagonal(dim1=1, dim2=2), deficient
    (tensor([[3., 0.]]), False)

    :param problem: in canonical form.
    :param rank: R, at most the kernel's outputs.
    :return: the chain, its last stage with orthonormal columns, and whether the kernel's own rank is lower.
    """
    return _project(problem, *_eigen(problem), rank)


def _eigen(problem: Problem) -> tuple[Tensor, Tensor]:
    return overwriting_eigh(problem.norm.gram(problem.matrix))


def _project(problem: Problem, values: Tensor, vectors: Tensor, rank: int) -> tuple[Factorization, bool]:
    eps = torch.finfo(problem.kernel.dtype).eps
    # A covariance is itself rounded to the kernel's dtype, which shifts eigenvalues by eps; without one, singular
    # values are only limited by the rounding of the kernel, that is, eigenvalues by its square, and by this Gram's own.
    floor = values.shape[-1] * torch.finfo(values.dtype).eps
    noise = 4 * eps if problem.norm.weighted else max((values.shape[-1] * eps) ** 2, floor)
    deficient = bool((values[:, -rank] <= noise * values[:, -1]).any())
    left = vectors[:, :, -rank:].flip(2).to(problem.kernel)
    first = (left.mT @ problem.matrix).reshape(left.shape[0], rank, *problem.kernel.shape[2:])
    ones = (1,) * (problem.kernel.dim() - 3)
    return Factorization((Stage(first), Stage(left.reshape(*left.shape, *ones)))), deficient
