# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

r"""How noise on the factors of a CP decomposition changes the kernel, and how to keep that small.

A kernel [T, S, K] is the sum of R rank-one components :math:`a_r \circ b_r \circ c_r`, the columns of A, B and C in the
table of notation in lowrank_plugin/README.md; all groups are solved at once. Small systems are float64: their
conditioning is the square of that of the factors.

[1] Phan et al., "Stable Low-Rank Tensor Decomposition for Compression of Convolutional Neural Network", ECCV 2020,
arXiv:2008.05441.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lowrank_plugin.solvers.parts.linear_algebra import overwriting_eigh


class Factors(NamedTuple):
    """The factors of a CP decomposition, float64.

    >>> factors = Factors(*(torch.ones(1, n, 2, dtype=torch.float64) for n in (5, 4, 9)))
    >>> factors.rank, factors.dense().shape, factors.dense().max()
    (2, torch.Size([1, 5, 4, 9]), tensor(2., dtype=torch.float64))

    :param out: [G, T, R].
    :param inp: [G, S, R].
    :param tap: [G, K, R].
    """

    out: Tensor
    inp: Tensor
    tap: Tensor

    @property
    def rank(self) -> int:
        """R, the number of components."""
        return int(self.out.shape[-1])

    def squares(self) -> tuple[Tensor, Tensor, Tensor]:
        """Squared norms of the columns, each [G, R]."""
        out, inp, tap = (factor.square().sum(dim=1) for factor in self)
        return out, inp, tap

    def dense(self) -> Tensor:
        """The kernel [G, T, S, K]."""
        return torch.einsum("gtr,gsr,gkr->gtsk", *self)


def component_norms(factors: Factors) -> Tensor:
    r"""Norms :math:`\eta_r = |a_r| |b_r| |c_r|` of the components.

    >>> component_norms(Factors(*(torch.ones(1, 4, 1, dtype=torch.float64) for _ in range(3))))
    tensor([[8.]], dtype=torch.float64)

    :param factors: the decomposition.
    :return: [G, R].
    """
    out, inp, tap = (factor.norm(dim=1) for factor in factors)
    return out * inp * tap


def sensitivity(factors: Factors) -> Tensor:
    r"""The expected squared change of the kernel per unit variance of noise on all factor entries.

    :math:`\sum_r K |a_r|^2 |b_r|^2 + T |b_r|^2 |c_r|^2 + S |a_r|^2 |c_r|^2` (section 3 of [1], in the limit of small
    noise).

    >>> ones = torch.ones(1, 2, 1, dtype=torch.float64)
    >>> sensitivity(Factors(ones, ones, ones))
    tensor([24.], dtype=torch.float64)

    :param factors: the decomposition.
    :return: [G].
    """
    a, b, c = factors.squares()
    t, s, k = (factor.shape[1] for factor in factors)
    return (k * a * b + t * b * c + s * a * c).sum(dim=1)


def rescale(factors: Factors) -> Factors:
    r"""Scale the columns so that the sensitivity is least and the kernel the same.

    Every column then has the same root mean square in all three factors, :math:`\eta_r^{1/3} / (T S K)^{1/6}`, which is
    also what rounding with one step for each factor wants. By the inequality of the means the three terms of
    :func:`sensitivity` are then equal, and it comes to :math:`3 (T S K)^{1/3} \sum_r \eta_r^{4/3}`.

    >>> ones = torch.ones(1, 2, 1, dtype=torch.float64)
    >>> even = rescale(Factors(8 * ones, ones, ones))
    >>> [round(float(factor.max()), 6) for factor in even]
    [2.0, 2.0, 2.0]

    :param factors: the decomposition; a component with a zero column becomes zero.
    :return: the same kernel.
    """
    norms = [factor.norm(dim=1, keepdim=True) for factor in factors]
    sizes = [factor.shape[1] for factor in factors]
    # The cube root of a product of three norms, taken one by one so that it neither vanishes nor overflows.
    level = math.prod(norm.pow(1 / 3) for norm in norms) / math.prod(sizes) ** (1 / 6)
    scaled = []
    for factor, norm, size in zip(factors, norms, sizes, strict=True):
        unit = factor / torch.where(norm > 0, norm, torch.ones_like(norm))
        scaled.append(unit.mul_(math.sqrt(size) * level))
    return Factors(*scaled)


def congruence(factors: Factors) -> Tensor:
    """The cosine between the two most opposed components; near -1 where components cancel each other.

    >>> ones = torch.ones(1, 2, 1, dtype=torch.float64)
    >>> opposed = Factors(torch.cat([ones, -2 * ones], dim=2), ones.repeat(1, 1, 2), ones.repeat(1, 1, 2))
    >>> round(float(congruence(opposed)), 6)
    -1.0

    :param factors: the decomposition.
    :return: [G].
    """
    gram = torch.ones((), dtype=factors.out.dtype, device=factors.out.device)
    for factor in factors:
        unit = torch.nn.functional.normalize(factor, dim=1)
        gram = gram * (unit.mT @ unit)
    return gram.flatten(1).amin(dim=1)


class Update(NamedTuple):
    """The answer of :func:`bounded_update`.

    :param factor: [G, T, R].
    :param multiplier: the Lagrange multiplier of the bound, [G]; 0 where the bound cannot be met.
    """

    factor: Tensor
    multiplier: Tensor


def bounded_update(
    rhs: Tensor,
    gram: Tensor,
    weights: Tensor,
    energy: Tensor,
    bound: Tensor,
    rows: Tensor | None = None,
    cutoff: float | None = None,
) -> Update:
    r"""Minimise :math:`\mathrm{tr}(A\,\mathrm{diag}(w)\,A^\top)` subject to a bound on the squared error.

    The squared error is :math:`e - 2 \langle A, F \rangle + \mathrm{tr}(A \Gamma A^\top)`, row t multiplied by its
    weight if there are any. [1] (section 3.2) turns this into a spherically constrained quadratic program. Here it is
    ridge regression :math:`A (\Gamma + \nu\,\mathrm{diag}(w)) = F` whose :math:`\nu` solves a scalar secular
    equation, the same optimum: with the eigenvalues :math:`\lambda` of the scaled :math:`\Gamma` the excess over the
    least squares error is :math:`h(x) = \sum g / (1 + \lambda x)^2`, :math:`x = 1 / \nu`. As :math:`h^{-1/2}` is
    concave, Newton's method on it from x = 0 rises monotonically to the root and needs no bracket.

    >>> one = torch.ones(1, 1, 1, dtype=torch.float64)
    >>> update = bounded_update(one, one, one[0], energy=one[0, 0], bound=0.25 * one[0, 0])
    >>> update.factor, update.multiplier  # |1 - A| = 0.5
    (tensor([[[0.5000]]], dtype=torch.float64), tensor([1.], dtype=torch.float64))

    Differences from the paper: no sphere, no bracketing; a bound below the least squares error is not an error but
    gives the least squares solution; rows of different weight.

    :param rhs: F, the kernel times the other modes, [G, T, R], float64.
    :param gram: [G, R, R], float64, positive semi-definite.
    :param weights: w, [G, R], not negative.
    :param energy: e, the squared norm of the kernel, [G].
    :param bound: the bound on the squared error, [G].
    :param rows: weights of the rows, [G, T], not negative.
    :param cutoff: eigenvalues below this share of the largest count as zero; None for that of float64.
    :return: the factor and the multiplier.
    """
    cutoff = gram.shape[-1] * torch.finfo(gram.dtype).eps if cutoff is None else cutoff
    largest = weights.amax(dim=1, keepdim=True)
    floor = torch.where(largest > 0, 1e-30 * largest, torch.ones_like(largest))
    inverse_root = torch.maximum(weights, floor).rsqrt()
    values, vectors = overwriting_eigh((gram * inverse_root[:, :, None]).mul_(inverse_root[:, None, :]))
    kept = values > cutoff * values[:, -1:].clamp_min(0)
    values = torch.where(kept, values, torch.ones_like(values))[:, None, :]
    image = (rhs * inverse_root[:, None, :]) @ vectors
    image.masked_fill_(~kept[:, None, :], 0.0)
    row = torch.ones_like(rhs[:, :1, :1]) if rows is None else rows[:, :, None]
    gains = image.square().div_(values).mul_(row)
    target = bound - (energy - gains.sum(dim=(1, 2)))
    # Without row weights all rows share their R terms.
    terms, poles = (gains.sum(dim=1), values[:, 0]) if rows is None else (gains.flatten(1), (row * values).flatten(1))
    x = _secular_root(terms, poles, target)
    del gains, terms, poles
    pull = row * values * x[:, None, None]
    share = torch.where((target > 0)[:, None, None], pull / (1 + pull), 1.0)
    share = torch.where(row > 0, share, 0.0)
    factor = image.mul_(share).div_(values) @ vectors.mT
    factor.mul_(inverse_root[:, None, :])
    multiplier = torch.where((target > 0) & (x > 0), 1 / x, torch.zeros_like(x))
    return Update(factor, multiplier)


def _secular_root(terms: Tensor, poles: Tensor, target: Tensor, steps: int = 40) -> Tensor:
    """The x >= 0 at which the sum of ``terms / (1 + poles x)^2`` has fallen to ``target``.

    :param terms: [G, n], not negative.
    :param poles: [G, n], not negative.
    :param target: [G]; lanes with a target of zero or less, or with nothing to lower, are answered with 0.
    :param steps: the most Newton steps; 3 to 11 suffice for poles over twelve decades.
    :return: [G].
    """
    x = torch.zeros_like(target)
    tiny = torch.finfo(terms.dtype).tiny
    for _ in range(steps):
        q = (poles * x[:, None]).add_(1).reciprocal_()
        parts = (terms * q).mul_(q)
        value = parts.sum(dim=1)
        active = (value > target * (1 + 1e-13)) & (target > 0)
        if not bool(active.any()):
            break
        slope = parts.mul_(q).mul_(poles).sum(dim=1).clamp_min(tiny)
        ratio = value / torch.where(active, target, torch.ones_like(target))
        x = torch.where(active, x + value / slope * (ratio.sqrt() - 1), x)
    return x
