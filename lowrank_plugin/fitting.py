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

from lowrank_hooks import Decomposer, Factorization, KernelShape, Problem, Rank, Solution
from lowrank_plugin.norms import as_measured, make_norm
from lowrank_plugin.settings import Settings
from lowrank_plugin.solvers import batching
from lowrank_plugin.survey import Layer
from lowrank_plugin.vectors import Inputs

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
    :param seconds: time the fit took; of layers solved together, each one's share.
    """

    factorization: Factorization | None
    bias: Tensor | None
    solution: Solution
    output_error: float
    seconds: float


def make_problem(
    layer: Layer, module: nn.Module, moments: Inputs | None, gradient: Tensor | None, settings: Settings
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
    moments: Sequence[Inputs | None],
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


def corrected(bias: Tensor | None, problem: Problem, chain: Factorization, moments: Inputs | None) -> Tensor | None:
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
