# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""How much of a kernel is noise, by empirical variational Bayesian matrix factorisation.

[1] Nakajima, Sugiyama, Babacan and Tomioka, "Global Analytic Solution of Fully-observed Variational Bayesian Matrix
Factorization", Journal of Machine Learning Research 14, 2013.
[2] Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications",
ICLR 2016, arXiv:1511.06530, which takes the ranks of Tucker-2 from it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowrank_hooks import Problem
from lowrank_plugin.solvers.parts.canonical import canonical
from lowrank_plugin.solvers.parts.linear_algebra import cholesky
from lowrank_plugin.solvers.two_block.folding import fold

_GRID = 64
"""Variances compared at a time."""
_ZOOMS = 6
"""Times the grid is refined around its best variance."""


def noise_level(problem: Problem) -> float:
    r"""The relative error with which a layer loses its noise and nothing else.

    The outputs' unfolding of the kernel and, where it has taps, the inputs' are seen through the norm, the latter
    through its mean over the taps. What :func:`evbmf_rank` discards of both adds up to the bound on the error of
    Tucker-2 at those ranks ([2]). In a covariance norm the noise of the weights is not white any more; there it is the
    usual heuristic carried over.

    >>> noise_level(Problem(torch.randn(1, 32, 64, generator=torch.Generator().manual_seed(0))))
    1.0

    :param problem: the kernel and the norm.
    :return: from 0 to 1.
    """
    reduced, shape = canonical(problem).problem, problem.shape
    sides = [(torch.linalg.eigvalsh(reduced.norm.gram(reduced.matrix)), shape.out_channels)]
    if shape.taps > 1:
        sides.append((_input_squares(reduced), shape.in_channels))
    share = 0.0
    for squares, rows in sides:
        columns = shape.parameters // (shape.groups * rows)
        ordered = squares.clamp_min(0).flip(1)[:, : min(rows, columns)]
        lost = sum(
            float(of_group[evbmf_rank(of_group, max(rows, columns)) :].sum()) for of_group in ordered if of_group.any()
        )
        total = float(ordered.sum())
        share += lost / total if total > 0 else 0.0
    return min(1.0, math.sqrt(share))


def evbmf_rank(squares: Tensor, columns: int) -> int:
    r"""The rank of the empirical VB solution, its noise variance found as well: the global optimum ([1]).

    Singular values above :math:`\sigma\sqrt{M \underline x}` are kept, :math:`\underline x = (1 + \underline\tau)
    (1 + \alpha / \underline\tau)`; the variance minimises the free energy as a function of it alone.

    >>> squares = torch.cat([torch.tensor([1e4, 5e3]), torch.linspace(1.6, 0.4, 30) * 100]).double()
    >>> evbmf_rank(squares, 100)
    2

    :param squares: the squared singular values of an L x M matrix, descending, float64 [L].
    :param columns: M, at least L.
    :return: the rank, from 0 to L.
    """
    rows = len(squares)
    if not squares[0] > 0:
        return 0
    alpha = rows / columns
    threshold = _threshold(alpha)
    floor = torch.finfo(squares.dtype).eps * rows * squares[0]
    squares = squares.clamp_min(floor)
    # at most this many components are kept ([1]), which bounds the variance from below
    most = min(math.ceil(rows / (1 + alpha)) - 1, rows - 1)
    low = max(float(squares[most]) / (columns * threshold), float(squares[most:].mean()) / columns)
    high = float(squares.mean()) / columns
    ends = (math.log(min(low, high)), math.log(high))
    for _ in range(_ZOOMS):
        grid = torch.linspace(*ends, _GRID, dtype=squares.dtype, device=squares.device)
        best = int(_free_energy(squares[:, None] / (columns * grid.exp()), alpha, threshold).argmin())
        ends = (float(grid[max(best - 1, 0)]), float(grid[min(best + 1, _GRID - 1)]))
    variance = math.exp(float(grid[best]))
    return int((squares > columns * variance * threshold).sum())


def _free_energy(x: Tensor, alpha: float, threshold: float) -> Tensor:
    r"""The free energy of [1] up to constants, for each column of squared singular values over :math:`M \sigma^2`."""
    excess = x.clamp_min(threshold) - (1 + alpha)
    tau = (excess + (excess.square() - 4 * alpha).clamp_min(0).sqrt()) / 2
    gain = (tau + 1).log() + alpha * (tau / alpha + 1).log() - tau
    return (x - x.log() + torch.where(x > threshold, gain, torch.zeros_like(x))).sum(dim=0)


def _threshold(alpha: float) -> float:
    r"""The :math:`\underline x` of [1] for :math:`\alpha = L / M`, by bisection."""

    def phi(z: float) -> float:
        return math.log1p(z) / z - 0.5

    low, high = math.sqrt(alpha), 3.0  # [1]: the root lies between, at about 2.5129 sqrt(alpha)
    for _ in range(60):
        tau = (low + high) / 2
        low, high = (tau, high) if phi(tau) + phi(tau / alpha) > 0 else (low, tau)
    return (1 + low) * (1 + alpha / low)


def _input_squares(problem: Problem) -> Tensor:
    """Squared singular values of the inputs' unfolding through the mean covariance of the channels, [G, S] ascending.

    :param problem: in canonical form.
    """
    means = fold(problem, 1).means
    unfolded = problem.kernel.transpose(1, 2).flatten(2).double()
    if means is not None:
        unfolded = cholesky(means[0].double()).mT @ unfolded
    return torch.linalg.eigvalsh(unfolded @ unfolded.mT)
