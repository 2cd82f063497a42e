# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Damped Gauss-Newton for a few weights of a network: conjugate gradients on the linearised network, no step sizes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp

from lowrank_plugin.outputs.losses import Loss

Parameters = dict[str, Tensor]
"""The weights and biases that are refitted, by name."""

Function = Callable[[Parameters, Any], Tensor]
"""From parameters and the inputs of a sample to an output; differentiable forwards and backwards."""

PARTS = (1.0, 0.5, 0.25)
"""Parts of the way to an iterate that are tried on the samples held out: few samples point too far."""


@dataclass(frozen=True)
class Sample:
    """A batch of inputs and what should come out.

    :param inputs: whatever the function takes.
    :param target: of the shape of the function's output.
    """

    inputs: Any
    target: Tensor


@dataclass(frozen=True)
class Minimum:
    """What a minimisation came to.

    :param weights: the best weights on the held-out samples.
    :param before: loss on the held-out samples with the weights at the start.
    :param after: with the best ones.
    :param steps: conjugate-gradient steps up to the best ones.
    """

    weights: Parameters
    before: float
    after: float
    steps: int


@torch.no_grad()
def minimise(
    function: Function,
    weights: Mapping[str, Tensor],
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    loss: Loss,
    precondition: Callable[[Parameters], Parameters],
    damping: Mapping[str, float],
    steps: int,
) -> Minimum:
    r"""Lower a loss by solving :math:`(J^T H J + D)\,d = -J^T g` with preconditioned conjugate gradients.

    J is the derivative of the function in its weights, g and H slope and curvature of the loss. The iterates of
    conjugate gradients go from the start towards the minimum of the quadratic model, the well-determined directions
    first; each, and parts of the way to it, are tried on the samples held out, and the best one is taken. That stops
    the fit to few samples where it begins to harm, and nothing that is worse than the start is ever returned.

    J. Martens, "Deep learning via Hessian-free optimization", ICML 2010, section 4.

    >>> from lowrank_plugin.outputs.losses import Values
    >>> samples = [Sample(torch.eye(2), torch.tensor([1.0, 4.0]))]
    >>> outcome = minimise(lambda weights, inputs: inputs @ weights["w"], {"w": torch.zeros(2)}, samples, samples,
    ...     Values(), precondition=lambda g: g, damping={"w": 0.0}, steps=2)
    >>> outcome.weights["w"], outcome.after
    (tensor([1., 4.]), 0.0)

    :param function: from weights and the inputs of a sample to an output; differentiable forwards and backwards.
    :param weights: where to start, float32 or float64; they are not changed.
    :param samples: to learn from.
    :param held_out: to judge by.
    :param loss: the loss.
    :param precondition: an approximation of the inverse of the matrix, symmetric and positive definite.
    :param damping: the entries of D, one for each weight tensor.
    :param steps: the most steps taken.
    """
    start = dict(weights)
    before = _total(function, start, held_out, loss)
    best = Minimum(start, before, before, 0)
    residual = {name: -each for name, each in _gradient(function, start, samples, loss).items()}
    direction = {name: torch.zeros_like(each) for name, each in start.items()}
    search: Parameters = {}
    product = 1.0
    for step in range(1, steps + 1):
        scaled = precondition(residual)
        previous, product = product, _dot(residual, scaled)
        if not product > 0:
            break
        # in the order of the weights, because forward differentiation compares the two structures
        search = {
            name: scaled[name] + (product / previous) * search[name] if search else scaled[name] for name in start
        }
        image = _curvature(function, start, search, samples, loss)
        image = {name: each + damping[name] * search[name] for name, each in image.items()}
        length = product / _dot(search, image)
        direction = {name: each + length * search[name] for name, each in direction.items()}
        residual = {name: each - length * image[name] for name, each in residual.items()}
        tried = [_trial(function, start, direction, part, held_out, loss) for part in PARTS]
        after, moved = min(tried, key=lambda each: each[0])
        if not after < best.after:
            break
        best = Minimum(moved, before, after, step)
    return best


def _trial(
    function: Function,
    start: Parameters,
    direction: Parameters,
    part: float,
    held_out: Sequence[Sample],
    loss: Loss,
) -> tuple[float, Parameters]:
    moved = {name: each + part * direction[name] for name, each in start.items()}
    return _total(function, moved, held_out, loss), moved


def _total(function: Function, weights: Parameters, samples: Sequence[Sample], loss: Loss) -> float:
    values = [float(loss.value(function(weights, each.inputs), each.target)) for each in samples]
    return sum(values) if all(map(math.isfinite, values)) else math.inf


def _gradient(function: Function, weights: Parameters, samples: Sequence[Sample], loss: Loss) -> Parameters:
    total = {name: torch.zeros_like(each) for name, each in weights.items()}
    for sample in samples:
        output, pull, *_ = vjp(_of(function, sample), weights)
        _add(total, pull(loss.slope(output, sample.target))[0])
    return total


def _curvature(
    function: Function, weights: Parameters, tangent: Parameters, samples: Sequence[Sample], loss: Loss
) -> Parameters:
    total = {name: torch.zeros_like(each) for name, each in weights.items()}
    for sample in samples:
        at = _of(function, sample)
        # the output's change first, then what that change pulls back: two passes, no second derivatives of the network
        with warnings.catch_warnings():
            # torch's forward differentiation loads a part of torch that torch itself calls deprecated
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            output, change, *_ = jvp(at, (weights,), (tangent,))
        _, pull, *_ = vjp(at, weights)
        _add(total, pull(loss.curvature(output, change))[0])
    return total


def _of(function: Function, sample: Sample) -> Callable[[Parameters], Tensor]:
    return lambda moved: function(moved, sample.inputs)


def _add(total: Parameters, more: Mapping[str, Tensor]) -> None:
    for name, each in total.items():
        each += more[name]


def _dot(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    return sum(float((each.double() * second[name].double()).sum()) for name, each in first.items())
