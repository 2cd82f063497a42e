# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What is asked about a layer: its kernel and the norm that was seen, and what the answer means for its bias."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from lowrank_hooks import (
    Decomposer,
    ErrorNorm,
    Factorization,
    KernelShape,
    Norm,
    NormKind,
    PeakMemory,
    Problem,
    Rank,
    SampledNorm,
)
from lowrank_plugin.layers.survey import Layer
from lowrank_plugin.settings import Settings
from lowrank_plugin.statistics.autocorrelation import Autocorrelation
from lowrank_plugin.statistics.norms import make_norm
from lowrank_plugin.statistics.vectors import Inputs, Vectors

FLOAT64_WIDTH = 1152
"""Layers whose covariance is at most this wide are solved in float64: it costs little there and a float32 product
loses half of the digits of a small error. Wider ones are solved in float32, where memory and time double otherwise."""


def make_problem(
    layer: Layer, module: nn.Module, moments: Inputs | None, gradient: Tensor | None, settings: Settings
) -> Problem:
    """Ask for a layer's kernel to be approximated.

    >>> from lowrank_plugin.layers.survey import survey
    >>> from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> found = survey(model, torch.zeros(1, 3, 8, 8), Settings(), manager().registered(LAYER_ADAPTERS))
    >>> problem = make_problem(found.layers["0"], model[0], None, None, Settings())
    >>> problem.kernel.shape, problem.kernel.dtype, problem.norm.name
    (torch.Size([1, 8, 3, 3, 3]), torch.float64, 'frobenius')

    :param layer: how it is seen.
    :param module: its module, with the weight.
    :param moments: the moments of its input; None for the Frobenius norm.
    :param gradient: second moments of its output gradients, for the two-sided norm; or None.
    :param settings: for the device, the seed, the rank multiple and the slack.
    """
    kernel = layer.adapter.kernel(module)
    kernel = kernel.to(settings.device or kernel.device, solver_dtype(kernel))
    slack = settings.stability.slack if settings.stability else None
    return Problem(kernel, make_norm(moments, gradient, kernel), settings.seed, settings.rank_multiple, slack)


def solver_dtype(kernel: Tensor) -> torch.dtype:
    """What a layer is solved in.

    >>> solver_dtype(torch.zeros(1, 8, 8, 3, 3)), solver_dtype(torch.zeros(1, 8, 512, 3, 3))
    (torch.float64, torch.float32)

    :param kernel: [G, T, S, *kernel] of the layer, in the layer's own dtype.
    """
    narrow = math.prod(kernel.shape[2:]) <= FLOAT64_WIDTH
    return torch.float64 if narrow or kernel.dtype == torch.float64 else torch.float32


def norm_entries(shape: KernelShape, patches: Inputs | Autocorrelation | None, norm: NormKind) -> int:
    """Numbers that the matrices of a layer's norm will hold.

    >>> from lowrank_hooks import NORMS
    >>> norm_entries(KernelShape(1, 8, 4, (3, 3)), None, NORMS["covariance"]), 36 * 36
    (1296, 1296)

    :param shape: of the layer's kernel.
    :param patches: what was seen of its inputs; None where they do not count.
    :param norm: the norm.
    """
    columns = shape.in_channels * shape.taps
    rows = min(patches.count, columns) if isinstance(patches, Vectors) else columns
    covariance = shape.groups * rows * columns if norm.weighted else 0
    return covariance + (shape.groups * shape.out_channels**2 if norm.turned else 0)


def stated_bytes(decomposer: Decomposer, kernel: Tensor, rank: Rank, norm: NormKind) -> int | None:
    """The peak extra memory that a solver says it needs; None where it says nothing.

    :param decomposer: the solver.
    :param kernel: [G, T, S, *kernel] of the layer.
    :param rank: the rank.
    :param norm: the norm.
    """
    if not isinstance(decomposer, PeakMemory):
        return None
    shape = KernelShape(kernel.shape[0], kernel.shape[1], kernel.shape[2], tuple(kernel.shape[3:]))
    return decomposer.peak_bytes(shape, rank, norm, solver_dtype(kernel).itemsize)


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
