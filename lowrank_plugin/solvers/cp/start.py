# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""From a problem to the starting point of its CP decomposition, and from the factors back to a chain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_hooks import Factorization, Problem, Stage
from lowrank_plugin.solvers.cp.blocks import Objective
from lowrank_plugin.solvers.cp.sensitivity import Factors, rescale
from lowrank_plugin.solvers.parts.linear_algebra import roots, row_products, unit_scale

_BLIND = 1e-7
"""Least weight of an output, relative to the largest: outputs that the norm does not see are still reproduced."""
_RIDGE = 1e-4
"""Added to the mean covariances, relative to their mean eigenvalue, before they are inverted."""


@dataclass(frozen=True)
class Prepared:
    """Problems of one shape in the coordinates of the solver, the groups of one after those of the other.

    >>> two = prepare([Problem(torch.ones(3, 2, 2, 4))] * 2)
    >>> two.groups, two.part(1), two.of_each(torch.arange(6))
    (3, slice(3, 6, None), tensor([ 3, 12]))

    :param kernel: [G, T, S, K], of unit size, outputs rotated so that the norm's output side is diagonal.
    :param objective: its squared error.
    :param turn: the rotation of the outputs, [G, T, T] float64; None for none.
    :param scales: what the kernel of each problem was divided by.
    :param mixing: roots of the mean channel and tap covariances and their inverses; None in a plain norm.
    """

    kernel: Tensor
    objective: Objective
    turn: Tensor | None
    scales: tuple[float, ...]
    mixing: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None

    @property
    def groups(self) -> int:
        """How many a problem has."""
        return len(self.kernel) // len(self.scales)

    def of_each(self, by_group: Tensor) -> Tensor:
        """Sums over the groups of each problem, [..., problems], of numbers [..., G]."""
        return by_group.unflatten(-1, (len(self.scales), self.groups)).sum(dim=-1)

    def part(self, index: int) -> slice:
        """Where the groups of one problem lie."""
        return slice(index * self.groups, (index + 1) * self.groups)

    def chain(self, factors: Factors, index: int, kernel_size: tuple[int, ...]) -> Factorization:
        """1x1, depthwise, 1x1 for one problem, the factors in its dtype, rescaled to least sensitivity."""
        out, inp, tap = (factor[self.part(index)] for factor in factors)
        if self.turn is not None:
            out = self.turn[self.part(index)] @ out
        return to_chain(rescale(Factors(out * self.scales[index], inp, tap)), kernel_size, self.kernel.dtype)


def to_chain(factors: Factors, kernel_size: tuple[int, ...], dtype: torch.dtype) -> Factorization:
    """The chain of a CP decomposition.

    >>> ones = [torch.ones(1, n, 2, dtype=torch.float64) for n in (5, 4, 9)]
    >>> [stage.weight.shape for stage in to_chain(Factors(*ones), (3, 3), torch.float32).stages]
    [torch.Size([1, 2, 4, 1, 1]), torch.Size([1, 2, 1, 3, 3]), torch.Size([1, 5, 2, 1, 1])]

    :param factors: the decomposition.
    :param kernel_size: taps on each spatial axis.
    :param dtype: of the chain.
    :return: 1x1, depthwise, 1x1.
    """
    ones = (1,) * len(kernel_size)
    out, inp, tap = (factor.to(dtype) for factor in factors)
    return Factorization(
        (
            Stage(inp.mT.reshape(*inp.mT.shape, *ones).contiguous()),
            Stage(tap.mT.reshape(tap.shape[0], -1, 1, *kernel_size).contiguous(), factors.rank),
            Stage(out.reshape(*out.shape, *ones).contiguous()),
        )
    )


def prepare(problems: Sequence[Problem], input_steps: int = 2, tap_steps: int = 1) -> Prepared:
    """Scale and rotate problems, and compute all that depends on neither rank nor factors.

    Rotating the outputs changes neither the error nor the sensitivity, so even in a two-sided norm the sensitivity
    is that of the factors as they are used.

    >>> prepared = prepare([Problem(torch.full((1, 3, 2, 4), 2.0**40))])
    >>> float(prepared.kernel.max()), float(prepared.objective.energy), prepared.scales == (2.0**40,)
    (1.0, 24.0, True)

    :param problems: the problems as they were asked, of one shape.
    :param input_steps: conjugate-gradient steps for the inputs in a sweep.
    :param tap_steps: the same for the taps.
    :return: the problems in the solver's coordinates.
    """
    scales = tuple(float(unit_scale(problem.kernel)) for problem in problems)
    flat = [problem.kernel.flatten(3) for problem in problems]
    kernel = _joined([each if scale == 1 else each / scale for each, scale in zip(flat, scales, strict=True)])
    turn, rows = None, None
    if problems[0].norm.turned:
        values, turn = torch.linalg.eigh(_joined([problem.norm.gradient for problem in problems]).double())
        top = values[:, -1:].clamp_min(0)
        rows = torch.where(top > 0, values / top, torch.ones_like(values)).clamp_min(_BLIND) * top.clamp_min(1e-300)
        kernel = torch.einsum("gut,gusk->gtsk", turn.to(kernel), kernel)
    covariance, mixing, whitener, cross = None, None, None, kernel
    if problems[0].norm.weighted:
        covariance = _joined([problem.norm.covariance for problem in problems]).to(kernel)
        cross = (kernel.flatten(2) @ covariance).view_as(kernel)
        mixing = _mean_roots(covariance, kernel.shape[2], kernel.shape[3])
        whitener = mixing[0][1] @ mixing[0][1]
    by_row = row_products(cross, kernel)
    energy = (by_row if rows is None else by_row * rows).sum(dim=1)
    objective = Objective(cross, energy.clamp_min(0), covariance, rows, whitener, input_steps, tap_steps)
    return Prepared(kernel, objective, turn, scales, mixing)


def _joined(tensors: Sequence[Tensor | None]) -> Tensor:
    """Tensors one after another along their groups; one alone is not copied."""
    present = [tensor for tensor in tensors if tensor is not None]
    return present[0] if len(present) == 1 else torch.cat(present)


def _mean_roots(covariance: Tensor, inputs: int, taps: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Roots of the mean channel block and tap block, so scaled that their Kronecker product has the same trace."""
    blocks = covariance.unflatten(2, (inputs, taps)).unflatten(1, (inputs, taps))
    channel = blocks.diagonal(dim1=2, dim2=4).sum(dim=-1).double()
    tap = blocks.diagonal(dim1=1, dim2=3).sum(dim=-1).double()
    trace = channel.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None].clamp_min(1e-300)
    return _ridged_roots(channel), _ridged_roots(tap / trace)


def _ridged_roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    mean = matrix.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None].expand(matrix.shape[:2])
    return roots(matrix + torch.diag_embed(_RIDGE * mean))


def whitened(prepared: Prepared) -> Tensor:
    """The kernel whose plain norm is about the problem's norm: exactly, where the covariance is a Kronecker product.

    >>> from lowrank_hooks import Norm
    >>> prepared = prepare([Problem(torch.ones(1, 3, 2, 4), Norm(4 * torch.eye(8)[None]))])
    >>> float(whitened(prepared).square().sum().round()), float(prepared.objective.energy.round())
    (96.0, 96.0)

    :return: [G, T, S, K].
    """
    kernel = prepared.kernel
    if prepared.mixing is not None:
        (channel, _), (tap, _) = prepared.mixing
        kernel = torch.einsum("gtsk,gsp,gkl->gtpl", kernel, channel.to(kernel), tap.to(kernel))
    if prepared.objective.rows is not None:
        kernel = kernel * prepared.objective.rows.sqrt().to(kernel)[:, :, None, None]
    return kernel


def unwhiten(prepared: Prepared, factors: Factors) -> Factors:
    """Factors of the kernel from those of the whitened one.

    >>> from lowrank_hooks import Norm
    >>> prepared = prepare([Problem(torch.ones(1, 3, 2, 4), Norm(4 * torch.eye(8)[None]))])
    >>> white = Factors(*(torch.ones(1, n, 1, dtype=torch.float64) for n in (3, 2, 4)))
    >>> round(float(unwhiten(prepared, white).dense().max()), 3)
    0.5
    """
    out, inp, tap = factors
    if prepared.objective.rows is not None:
        out = out / prepared.objective.rows.sqrt()[:, :, None]
    if prepared.mixing is not None:
        (_, channel), (_, taps) = prepared.mixing
        inp, tap = channel @ inp, taps @ tap
    return rescale(Factors(out, inp, tap))


@dataclass(frozen=True)
class Slices:
    """The rank-one terms of the kernel's slices along the principal taps, strongest first.

    Any number of leading terms is a CP decomposition without a single cancelling pair, and its error is known: an
    upper bound of the best error at every rank at once.

    >>> taps = slices(torch.ones(1, 3, 2, 4), 1)
    >>> taps.terms, taps.factors.rank
    (8, 1)

    :param factors: the strongest terms.
    :param squares: squared norms of all terms, [G, K min(T, S)].
    """

    factors: Factors
    squares: Tensor

    @property
    def terms(self) -> int:
        """How many there are in all: with all of them the kernel is met exactly."""
        return int(self.squares.shape[1])


def slices(kernel: Tensor, largest: int) -> Slices:
    """Decompose the slices of a kernel along its principal taps by SVD.

    >>> squares = slices(torch.ones(1, 3, 2, 4), 1).squares
    >>> [round(x, 4) + 0.0 for x in squares[0].tolist()[:2]]
    [24.0, 0.0]

    :param kernel: [G, T, S, K].
    :param largest: how many terms are wanted.
    :return: the strongest terms.
    """
    moment = torch.einsum("gtsk,gtsl->gkl", kernel, kernel).double()
    basis = torch.linalg.eigh(moment).eigenvectors.flip(2)
    turned = torch.einsum("gtsk,gkl->glts", kernel, basis.to(kernel))
    left, values, right = torch.linalg.svd(turned, full_matrices=False)
    per_slice = values.shape[2]
    strength, order = values.flatten(1).double().sort(dim=1, descending=True, stable=True)
    order = order[:, :largest]
    kept = strength[:, None, :largest]

    def pick(columns: Tensor) -> Tensor:
        """[G, L, n, terms of a slice] to [G, n, terms] in descending order of strength, float64."""
        rows = torch.arange(len(order), device=order.device)[:, None]
        return columns[rows, order // per_slice, :, order % per_slice].mT.double()

    taps = basis.gather(2, (order // per_slice)[:, None].expand(-1, basis.shape[1], -1))
    return Slices(rescale(Factors(pick(left) * kept, pick(right.mT), taps)), strength.square())


def start(kernel_slices: Slices, rank: int, generator: torch.Generator, spread: float) -> Factors:
    """The leading terms, their taps blurred by random ones.

    Terms of one slice share their taps exactly, a saddle that the first sweeps would have to leave; the blur leaves it
    at once. All groups draw the same numbers, so that a grouped problem behaves like separate ones.

    >>> terms = slices(torch.ones(1, 3, 2, 4), 8)
    >>> begin = start(terms, 1, torch.Generator().manual_seed(0), spread=0.0)
    >>> torch.allclose(begin.dense(), torch.ones(1, 3, 2, 4, dtype=torch.float64), atol=1e-5)
    True

    :param kernel_slices: from :func:`slices`.
    :param rank: how many terms.
    :param generator: on the CPU.
    :param spread: size of the random part relative to the taps; not used where all terms are taken.
    :return: the starting point.
    """
    out, inp, tap = (factor[:, :, :rank] for factor in kernel_slices.factors)
    if rank < kernel_slices.terms:
        noise = torch.randn(tap.shape[1:], generator=generator, dtype=torch.float64).to(tap.device)
        tap = tap + spread / math.sqrt(tap.shape[1]) * tap.norm(dim=1, keepdim=True) * noise
    return Factors(out, inp, tap)
