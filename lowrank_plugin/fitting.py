# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""From a chosen rank to factors and a bias, in the dtype of the layer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank_hooks import Decomposer, Factorization, Norm, Problem, Rank, Solution
from lowrank_plugin.moments import Moments
from lowrank_plugin.settings import Settings
from lowrank_plugin.survey import Layer

FLOAT64_WIDTH = 1152
"""Layers whose covariance is at most this wide are solved in float64: it costs little there and a float32 product
loses half of the digits of a small error. Wider ones are solved in float32, where memory and time double otherwise."""


@dataclass(frozen=True)
class Fitted:
    """A layer's factors, ready to be put in place.

    :param factorization: the factors in float32 or float64; None where the fit failed.
    :param bias: the corrected bias [G*T]; None where the layer has none and needs none.
    :param solution: the solver's answer.
    :param output_error: relative error of the layer's output on the calibration data, or of the kernel in the
        Frobenius norm where there is none.
    :param seconds: time the fit took.
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


def make_norm(moments: Moments | None, like: Tensor) -> Norm:
    """The norm of a layer from its moments: the centred covariance, shrunk as far as it is uncertain.

    :param moments: the moments; None gives the Frobenius norm.
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
    return Norm(covariance.to(like))


def make_problem(layer: Layer, module: nn.Module, moments: Moments | None, settings: Settings) -> Problem:
    """Ask for a layer's kernel to be approximated.

    :param layer: the layer.
    :param module: its module.
    :param moments: the moments of its input; None for the Frobenius norm.
    :param settings: for the device, the seed, the rank multiple and the slack.
    """
    kernel = layer.adapter.kernel(module)
    wide = layer.shape.in_channels * layer.shape.taps > FLOAT64_WIDTH
    kernel = kernel.to(
        settings.device or kernel.device, torch.float32 if wide and kernel.dtype != torch.float64 else torch.float64
    )
    return Problem(kernel, make_norm(moments, kernel), settings.seed, settings.rank_multiple, settings.slack)


def fit(problem: Problem, decomposer: Decomposer, rank: Rank, bias: Tensor | None, moments: Moments | None) -> Fitted:
    """Solve for the factors and correct the bias.

    With the centred covariance the best bias is exactly ``b + (W - W~) mu``, which leaves the mean of the output
    unchanged.

    :param problem: the kernel and the norm.
    :param decomposer: the solver.
    :param rank: the rank.
    :param bias: the layer's bias [G*T], or None.
    :param moments: the moments of the layer's input, or None.
    """
    start = time.perf_counter()
    solution = decomposer.fit(problem, rank)
    if solution.value is None:
        return Fitted(None, bias, solution, float("nan"), time.perf_counter() - start)
    if moments is None:
        return Fitted(
            solution.value, bias, solution, problem.relative_error(solution.value), time.perf_counter() - start
        )
    difference = problem.matrix - solution.value.to_kernel().to(problem.kernel).reshape_as(problem.matrix)
    covariance = moments.covariance.to(problem.kernel)
    error, energy = (Norm(covariance).squared(matrix).sum() for matrix in (difference, problem.matrix))
    shift = (difference.double() @ moments.mean.to(difference.device).unsqueeze(-1)).flatten()
    corrected = shift if bias is None else bias.detach().to(shift) + shift
    output_error = float((error / energy).sqrt()) if energy > 0 else 0.0
    return Fitted(solution.value, corrected, solution, output_error, time.perf_counter() - start)


def usable(fitted: Mapping[str, Fitted]) -> dict[str, Fitted]:
    """Those that have finite factors."""
    return {
        name: each
        for name, each in fitted.items()
        if each.factorization is not None
        and all(bool(torch.isfinite(stage.weight).all()) for stage in each.factorization.stages)
    }
