# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Tensor trains: a kernel as 1x1, one stage for each spatial axis, 1x1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_hooks import (
    DecomposerRecord,
    Factorization,
    KernelShape,
    Point,
    Problem,
    Rank,
    Solution,
    Stage,
    StageShape,
    Status,
    hookimpl,
)

STEPS = 8
"""How many outer ranks a curve has."""

INNER = (0.5, 1.0, 2.0)
"""The inner ranks of a curve, as multiples of the outer ones."""


class TensorTrain:
    r"""TT-SVD [1] of the kernel over (input, taps of each axis, output), from the output to the input.

    The output rank is cut by the eigenvectors of :math:`W \Sigma W^\top`, which is optimal in the problem's norm. The
    inner ranks are cut in the covariance marginalised over the taps already split off; the last stage is then fitted
    again in the full norm, so the error never exceeds that of the cut. It is measured, not estimated.

    [1] Oseledets, "Tensor-Train Decomposition", SIAM Journal on Scientific Computing 33(5), 2011, algorithm 1.

    >>> problem = Problem(torch.ones(1, 4, 3, 3, 3))
    >>> solution = TensorTrain().fit(problem, (1, 1, 1))
    >>> [stage.kernel_size for stage in solution.value.shapes], solution.statistics["relative_error"] < 1e-6
    ([(1, 1), (3, 1), (1, 3), (1, 1)], True)
    """

    def structure(self, shape: KernelShape, rank: Rank) -> tuple[StageShape, ...]:
        """See :meth:`lowrank_hooks.Decomposer.structure`."""
        ranks = _lowered(shape, rank)
        axes = len(shape.kernel_size)
        ones = (1,) * axes
        stages = [StageShape(ranks[0], shape.in_channels, ones)]
        for axis in range(axes):
            stages.append(StageShape(ranks[axis + 1], ranks[axis], _taps(shape, axis)))
        return (*stages, StageShape(shape.out_channels, ranks[-1], ones))

    def curve(self, problem: Problem) -> Sequence[Point]:
        """Outer ranks in equal proportion to their largest, each with a few inner ones; with the errors of fits."""
        largest = _lowered(problem.shape, (10**9,) * (len(problem.shape.kernel_size) + 1))
        outer = (largest[0], largest[-1])
        ranks = {largest: None}
        for step in range(1, STEPS + 1):
            first, last = (_snapped(step / STEPS * full, problem.rank_multiple, full) for full in outer)
            for ratio in INNER:
                between = (_snapped(ratio * max(first, last), problem.rank_multiple, full) for full in largest[1:-1])
                rank = (first, *between, last) if problem.shape.kernel_size else (last,)
                ranks.setdefault(_lowered(problem.shape, rank))
        if not _is_finite(problem):
            return []
        prepared = _prepare(problem)
        return [Point(rank, problem.relative_error(_train(problem, prepared, rank))) for rank in ranks]

    def fit(self, problem: Problem, rank: Rank) -> Solution:
        """See :meth:`lowrank_hooks.Decomposer.fit`."""
        ranks = _lowered(problem.shape, rank)
        if not _is_finite(problem):
            return Solution(None, Status.NONFINITE_INPUT)
        chain = _train(problem, _prepare(problem), ranks)
        return Solution(chain, Status.CONVERGED, {"relative_error": problem.relative_error(chain)})


def _lowered(shape: KernelShape, rank: Rank) -> Rank:
    """Each rank at most what its unfolding has; from the output to the input, as they are cut."""
    count = len(shape.kernel_size) + 1
    if len(rank) != count or any(int(entry) != entry or entry < 1 for entry in rank):
        msg = f"tensor_train takes {count} positive whole number(s) as rank, not {tuple(rank)}."
        raise ValueError(msg)
    columns = shape.in_channels * shape.taps
    lowered = [min(int(rank[-1]), shape.out_channels, columns)]
    for size, entry in zip(reversed(shape.kernel_size), reversed(rank[:-1]), strict=True):
        columns //= size
        lowered.append(min(int(entry), lowered[-1] * size, columns))
    return tuple(reversed(lowered))


def _snapped(rank: float, multiple: int, largest: int) -> int:
    return min(max(round(rank / multiple), 1) * multiple, largest)


def _taps(shape: KernelShape, axis: int) -> tuple[int, ...]:
    return tuple(size if index == axis else 1 for index, size in enumerate(shape.kernel_size))


def _is_finite(problem: Problem) -> bool:
    tensors = (problem.kernel, problem.norm.covariance, problem.norm.gradient)
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor is not None)


@dataclass(frozen=True)
class _Prepared:
    """What all ranks share, in float64.

    :param covariance: [G, S*K, S*K] or None.
    :param rotated: the kernel [G, T', S*K] in the basis of its output directions, the weightiest first.
    :param marginals: for each axis the covariance of the columns that are left once it is split off.
    """

    covariance: Tensor | None
    rotated: Tensor
    marginals: tuple[Tensor | None, ...]


def _prepare(problem: Problem) -> _Prepared:
    matrix, norm = problem.matrix.double(), problem.norm
    covariance = None if norm.covariance is None else norm.covariance.double()
    seen = matrix if norm.gradient is None else _root(norm.gradient.double()) @ matrix
    marginals, marginal, columns = [], covariance, matrix.shape[-1]
    for size in reversed(problem.shape.kernel_size):
        columns //= size
        if marginal is not None:
            marginal = marginal.unflatten(2, (columns, size)).unflatten(1, (columns, size))
            marginal = marginal.diagonal(dim1=2, dim2=4).sum(dim=-1)
        marginals.insert(0, marginal)
    return _Prepared(covariance, _leading(seen, covariance, seen.shape[1]).mT @ seen, tuple(marginals))


def _train(problem: Problem, prepared: _Prepared, ranks: Rank) -> Factorization:
    """Cut one rank after the other."""
    shape = problem.shape
    rest = prepared.rotated[:, : ranks[-1]]
    stages: list[Stage] = []
    for axis in reversed(range(len(shape.kernel_size))):
        size = shape.kernel_size[axis]
        # [G, r, columns * size] with this axis last to [G, r * size, columns]
        rest = rest.unflatten(2, (-1, size)).transpose(2, 3).flatten(1, 2)
        basis = _leading(rest, prepared.marginals[axis], ranks[axis])
        rest = basis.mT @ rest
        weight = basis.unflatten(1, (ranks[axis + 1], size)).transpose(2, 3)
        stages.insert(0, Stage(weight.reshape(*weight.shape[:3], *_taps(shape, axis)).contiguous()))
    ones = (1,) * len(shape.kernel_size)
    stages.insert(0, Stage(rest.reshape(*rest.shape, *ones)))
    design = Factorization(tuple(stages)).to_kernel().flatten(2)
    last = _best_last(problem.matrix.double(), design, prepared.covariance)
    chain = Factorization((*stages, Stage(last.reshape(*last.shape, *ones))))
    return chain.map(lambda weight: weight.to(problem.kernel, copy=True))


def _leading(matrix: Tensor, covariance: Tensor | None, count: int) -> Tensor:
    r"""The eigenvectors of :math:`M \Sigma M^\top` of the largest eigenvalues, [G, rows, count]."""
    gram = (matrix if covariance is None else matrix @ covariance) @ matrix.mT
    return torch.linalg.eigh((gram + gram.mT) / 2).eigenvectors[..., -count:].flip(-1)


def _best_last(matrix: Tensor, design: Tensor, covariance: Tensor | None) -> Tensor:
    """The last stage [G, T, r] that is best for the chain before it, whose kernel is ``design``, [G, r, S*K]."""
    weighted = design if covariance is None else design @ covariance
    inverse = torch.linalg.pinv(weighted @ design.mT, hermitian=True)
    return matrix @ weighted.mT @ inverse


def _root(moment: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(moment)
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT


@hookimpl
def lowrank_decomposers() -> Iterator[DecomposerRecord]:
    """Offer the tensor train."""
    yield DecomposerRecord("tensor_train", TensorTrain(), "1x1, a stage for each axis, 1x1; for a linear layer a pair")
