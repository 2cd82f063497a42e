# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What is asked about a layer: its kernel and the norm that was seen, and what the answer means for its bias."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from lowrank_hooks import (
    NORMS,
    Decomposer,
    ErrorNorm,
    Factorization,
    KernelShape,
    Norm,
    PeakMemory,
    Problem,
    Rank,
    SampledNorm,
)
from lowrank_plugin.layers.survey import Layer
from lowrank_plugin.settings import Settings
from lowrank_plugin.statistics.norms import make_norm
from lowrank_plugin.statistics.vectors import Inputs, Vectors

FLOAT64_WIDTH = 1152
"""Layers whose covariance is at most this wide are solved in float64: it costs little there and a float32 product
loses half of the digits of a small error. Wider ones are solved in float32, where memory and time double otherwise."""


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
    slack = settings.stability.slack if settings.stability else None
    return Problem(kernel, make_norm(moments, gradient, kernel), settings.seed, settings.rank_multiple, slack)


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
    if not isinstance(decomposer, PeakMemory):
        return None
    shape = KernelShape(kernel.shape[0], kernel.shape[1], kernel.shape[2], tuple(kernel.shape[3:]))
    return decomposer.peak_bytes(shape, rank, NORMS[norm], _solver_dtype(kernel).itemsize)


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


def as_measured(problem: Problem, inputs: Inputs | None) -> Problem:
    """A problem in the norm whose errors are those of the layer's output, without the shrinkage that solvers work with.

    :param problem: the problem.
    :param inputs: the moments of the layer's input; None leaves the problem as it is.
    """
    if inputs is None:
        return problem
    seen: ErrorNorm
    if isinstance(inputs, Vectors):
        seen = SampledNorm(inputs.root, inputs.root.new_zeros(len(inputs.root)))
    else:
        seen = Norm(inputs.covariance)
    return replace(problem, norm=seen.map(lambda tensor: tensor.to(problem.kernel)))
