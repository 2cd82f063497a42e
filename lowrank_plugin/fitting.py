# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""From a chosen rank to factors and a bias, in the dtype of the layer."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lowrank_hooks import Decomposer, Factorization, KernelShape, Norm, Problem, Rank, Solution
from lowrank_plugin import batching
from lowrank_plugin.moments import Moments
from lowrank_plugin.settings import Settings
from lowrank_plugin.survey import Layer

FLOAT64_WIDTH = 1152
"""Layers whose covariance is at most this wide are solved in float64: it costs little there and a float32 product
loses half of the digits of a small error. Wider ones are solved in float32, where memory and time double otherwise."""

DAMPING = 1.0
"""Multiple of the mean eigenvalue added to the second moments of gradients. They hold only for small changes, and have
hardly a direction more than the network has classes: with 0.01, what is lost in the others ruins some networks."""


@dataclass(frozen=True)
class Fitted:
    """A layer's factors, ready to be put in place.

    :param factorization: the factors in float32 or float64; None where the fit failed.
    :param bias: the corrected bias [G*T]; None where the layer has none and needs none.
    :param solution: the solver's answer.
    :param output_error: relative error of the layer's output on the calibration data, or of the kernel in the
        Frobenius norm where there is none.
    :param seconds: time the fit took; of layers solved together, each one's share.
    """

    factorization: Factorization | None
    bias: Tensor | None
    solution: Solution
    output_error: float
    seconds: float


def shrinkage(covariance: Tensor, count: int) -> Tensor:
    """The weight of the identity in an estimate of a covariance from few samples, by oracle approximation.

    >>> shrinkage(torch.diag(torch.tensor([4.0, 1.0]))[None], 10**9) < 1e-6
    tensor([True])

    Chen, Wiesel, Eldar and Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE Transactions on Signal
    Processing 58(10), 2010, eq. 23.

    :param covariance: [G, D, D].
    :param count: how many vectors it was computed from.
    :return: [G], from 0 to 1.
    """
    width = covariance.shape[-1]
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    squares = covariance.square().sum(dim=(-2, -1))
    numerator = (1 - 2 / width) * squares + trace**2
    denominator = (count + 1 - 2 / width) * (squares - trace**2 / width)
    return torch.where(denominator > 0, numerator / denominator, torch.ones_like(trace)).clamp(0, 1)


def make_norm(moments: Moments | None, gradient: Tensor | None, like: Tensor) -> Norm:
    """The norm of a layer from its moments: the centred covariance, shrunk as far as it is uncertain.

    :param moments: the moments; None gives the Frobenius norm.
    :param gradient: second moments of the layer's output gradients [G, T, T], for the two-sided norm; or None.
    :param like: a tensor whose dtype and device the covariance takes.
    """
    if moments is None:
        return Norm()
    covariance = moments.covariance
    weight = shrinkage(covariance, moments.count)[:, None]
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(dim=-1, keepdim=True)
    covariance = covariance * (1 - weight.unsqueeze(-1))
    covariance.diagonal(dim1=-2, dim2=-1).add_(weight * mean)
    return Norm(covariance.to(like), None if gradient is None else damped(gradient).to(like))


def damped(gradient: Tensor) -> Tensor:
    """Second moments of gradients, kept away from singular.

    >>> damped(torch.diag(torch.tensor([1.0, 0.0]))[None])[0].diagonal()
    tensor([1.5000, 0.5000])

    :param gradient: [G, T, T].
    """
    mean = gradient.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    return gradient + DAMPING * mean[:, None, None] * torch.eye(gradient.shape[-1]).to(gradient)


def make_problem(
    layer: Layer, module: nn.Module, moments: Moments | None, gradient: Tensor | None, settings: Settings
) -> Problem:
    """Ask for a layer's kernel to be approximated.

    :param layer: the layer.
    :param module: its module.
    :param moments: the moments of its input; None for the Frobenius norm.
    :param gradient: second moments of its output gradients, for the two-sided norm; or None.
    :param settings: for the device, the seed, the rank multiple and the slack.
    """
    kernel = layer.adapter.kernel(module)
    kernel = kernel.to(settings.device or kernel.device, _solver_dtype(kernel))
    return Problem(kernel, make_norm(moments, gradient, kernel), settings.seed, settings.rank_multiple, settings.slack)


def _solver_dtype(kernel: Tensor) -> torch.dtype:
    narrow = math.prod(kernel.shape[2:]) <= FLOAT64_WIDTH
    return torch.float64 if narrow or kernel.dtype == torch.float64 else torch.float32


def stated_bytes(decomposer: Decomposer, kernel: Tensor, rank: Rank, norm: str) -> int | None:
    """The peak extra memory that a solver says it needs; None where it says nothing.

    :param decomposer: the solver.
    :param kernel: [G, T, S, *kernel] of the layer.
    :param rank: the rank.
    :param norm: the name of the norm.
    """
    stated = getattr(decomposer, "peak_bytes", None)
    if stated is None:
        return None
    shape = KernelShape(kernel.shape[0], kernel.shape[1], kernel.shape[2], tuple(kernel.shape[3:]))
    return int(stated(shape, rank, norm, _solver_dtype(kernel).itemsize))


def fit(
    problems: Sequence[Problem],
    decomposer: Decomposer,
    rank: Rank,
    biases: Sequence[Tensor | None],
    moments: Sequence[Moments | None],
) -> list[Fitted]:
    """Solve for the factors of layers that are alike, and correct their biases.

    With the centred covariance the best bias is exactly ``b + (W - W~) mu``, which leaves the mean of the output
    unchanged.

    :param problems: the kernels and the norms.
    :param decomposer: the solver.
    :param rank: the rank of all.
    :param biases: the layers' own [G*T], or None.
    :param moments: the moments of the layers' inputs, or None.
    """
    start = time.perf_counter()
    solutions = batching.fits(decomposer, problems, rank)
    fitted = []
    for problem, solution, bias, seen in zip(problems, solutions, biases, moments, strict=True):
        chain, error = solution.value, math.nan
        if chain is not None:
            error = as_measured(problem, seen).relative_error(chain)
            bias = corrected(bias, problem, chain, seen)
        fitted.append(Fitted(chain, bias, solution, error, 0.0))
    seconds = (time.perf_counter() - start) / len(fitted)
    return [replace(each, seconds=seconds) for each in fitted]


def as_measured(problem: Problem, moments: Moments | None) -> Problem:
    """A problem in the norm whose errors are those of the layer's output, without the shrinkage that solvers work with.

    :param problem: the problem.
    :param moments: the moments of the layer's input; None leaves the problem as it is.
    """
    return problem if moments is None else replace(problem, norm=Norm(moments.covariance.to(problem.kernel)))


def corrected(bias: Tensor | None, problem: Problem, chain: Factorization, moments: Moments | None) -> Tensor | None:
    """The bias with which a chain leaves the mean of the layer's output unchanged.

    :param bias: the layer's own [G*T], or None.
    :param problem: with the layer's kernel.
    :param chain: what takes its place.
    :param moments: the moments of the layer's input; None leaves the bias as it is.
    """
    if moments is None:
        return bias
    difference = problem.matrix - chain.to_kernel().to(problem.kernel).reshape_as(problem.matrix)
    shift = (difference.double() @ moments.mean.to(difference.device).unsqueeze(-1)).flatten()
    return shift if bias is None else bias.detach().to(shift) + shift


def usable(fitted: Mapping[str, Fitted]) -> dict[str, Fitted]:
    """Those that have finite factors."""
    return {
        name: each
        for name, each in fitted.items()
        if each.factorization is not None
        and all(bool(torch.isfinite(stage.weight).all()) for stage in each.factorization.stages)
    }
