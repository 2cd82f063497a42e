# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The reduction that every solver begins with: unit scale, a one-sided norm and no more outputs than inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowrank_hooks import Factorization, Problem, Stage
from lowrank_plugin.solvers.parts.linear_algebra import overwriting_eigh, relative_cutoff, solve_right, unit_scale


@dataclass(frozen=True)
class Canonical:
    """A problem whose norm has no output side, equivalent to the one that was asked.

    :param problem: kernel [G, T', S, *kernel] of unit size with T' <= T and T' <= S*K, norm without ``gradient``.
    :param restore: takes an approximation of the reduced kernel to one of the kernel that was asked for, of the same
        relative error. Only the last stage of the chain changes: it gets back the scale, the outputs that were left
        out and the output side of the norm, so it must have one group.
    :param scale: norms of the problem asked for are those of the reduced problem times this.
    """

    problem: Problem
    restore: Callable[[Factorization], Factorization]
    scale: float


def canonical(problem: Problem) -> Canonical:
    r"""Reduce a problem in any norm to one in a covariance or Frobenius norm; exact, whatever the decomposition.

    With a gradient moment :math:`\Gamma = Y^\top Y`, :math:`\|W\|_{\Gamma,\Sigma} = \|Y W\|_\Sigma`, so the solvers
    work on :math:`Y W` and the last stage is multiplied by the pseudo-inverse of the symmetric Y. Where the gradient
    is blind to some outputs, the last stage reproduces W there as well as its inputs allow, the least change in the
    covariance norm. A kernel with more outputs than inputs is replaced by the triangular factor of its QR
    decomposition. Finally the kernel is scaled to unit size by a power of two, so that squares of very small or very
    large entries neither vanish nor overflow in float32.

    >>> from lowrank_hooks import Norm
    >>> problem = Problem(torch.ones(1, 5, 2, 1, 1), Norm(gradient=4 * torch.eye(5)[None]))
    >>> reduced = canonical(problem)
    >>> reduced.problem.kernel.shape, reduced.problem.norm.name
    (torch.Size([1, 2, 2, 1, 1]), 'frobenius')
    >>> round(problem.relative_error(reduced.restore(Factorization((Stage(reduced.problem.kernel),)))), 6)
    0.0

    :param problem: the problem as it was asked.
    :return: the reduced problem and the way back.
    """
    matrix, lift, blind = problem.matrix, None, None
    if problem.norm.gradient is not None:
        root, lift, blind = _roots(problem.norm.gradient.to(matrix))
        matrix = root @ matrix
    if matrix.shape[1] > matrix.shape[2]:
        basis, matrix = torch.linalg.qr(matrix)
        lift = basis if lift is None else lift @ basis
    scale = unit_scale(matrix)
    matrix = matrix if float(scale) == 1 else matrix / scale
    kernel = matrix.reshape(matrix.shape[0], -1, *problem.kernel.shape[2:])

    def restore(chain: Factorization) -> Factorization:
        *first, last = chain.stages
        if last.groups != 1:
            msg = f"The last stage of a chain must have 1 group to carry the output side of a norm, not {last.groups}."
            raise ValueError(msg)
        rows = last.weight.flatten(2) * scale
        if lift is not None:
            rows = (lift @ rows.flatten(2)).reshape(rows.shape[0], lift.shape[1], *rows.shape[2:])
        if blind is not None:
            rows = rows + (blind @ _best_last(problem, chain)).reshape_as(rows)
        return Factorization((*first, Stage(rows.reshape(*rows.shape[:2], *last.weight.shape[2:]))))

    return Canonical(replace(problem, kernel=kernel, norm=problem.norm.one_sided), restore, float(scale))


def _roots(gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Symmetric square root of [G, T, T], its pseudo-inverse, and the projector onto the null space if there is one."""
    # float64: the inverse root of a badly conditioned moment multiplies its own rounding errors. The cut-off stays
    # that of the given dtype, in which the smaller eigenvalues are noise already.
    values, vectors = overwriting_eigh(gradient.to(torch.float64, copy=True, memory_format=torch.contiguous_format))
    kept = values > relative_cutoff(gradient) * values[:, -1:].clamp_min(0)
    root = torch.where(kept, values, torch.zeros_like(values)).sqrt()
    inverse = torch.where(kept, values.rsqrt(), torch.zeros_like(values))
    blind = None if bool(kept.all()) else _composed(vectors, (~kept).to(values), gradient)
    return _composed(vectors, root, gradient), _composed(vectors, inverse, gradient), blind


def _composed(vectors: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """The matrix with these eigenvectors and eigenvalues in the dtype of another, a quarter of its rows at a time."""
    matrix = torch.empty_like(like, memory_format=torch.contiguous_format)
    step = -(-matrix.shape[1] // 4)
    for target, rows in zip(matrix.split(step, dim=1), vectors.split(step, dim=1), strict=True):
        target.copy_((rows * values[:, None, :]) @ vectors.mT)
    return matrix


def _best_last(problem: Problem, chain: Factorization) -> Tensor:
    """The last stage, [G, T, inputs * taps], that is best in the covariance norm with all other stages given."""
    last = chain.stages[-1].weight
    groups, _, inputs, *taps = last.shape
    columns = inputs * last[0, 0, 0].numel()
    unit = torch.eye(columns, dtype=last.dtype, device=last.device).reshape(1, columns, inputs, *taps)
    probe = Stage(unit.expand(groups, *unit.shape[1:]).contiguous())
    design = Factorization((*chain.stages[:-1], probe)).to_kernel().flatten(2)
    weighted = problem.norm.one_sided.apply(design)
    best = solve_right((problem.matrix @ weighted.mT).double(), (design @ weighted.mT).double())
    return best.to(last)
