# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What an error at each layer costs the model: measured with a trial error, all layers in one backward pass."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor, nn

from lowrank_hooks import Problem
from lowrank_plugin.data.batches import batch_size
from lowrank_plugin.layers.survey import Layer, layer_input
from lowrank_plugin.outputs.reading import Outputs
from lowrank_plugin.solvers.parts.checks import is_finite
from lowrank_plugin.solvers.parts.fit import measured_error
from lowrank_plugin.solvers.svd import Spectrum
from lowrank_plugin.statistics.gradients import SAMPLES, Watch, pull_back
from lowrank_plugin.statistics.problems import as_measured, corrected
from lowrank_plugin.statistics.vectors import Inputs
from lowrank_plugin.support.progress import SILENT, Steps

TRIAL_ERRORS = (0.15, 0.3, 0.6)
"""Relative errors of the trials: mild, about what a layer gets when the cost of a network is halved, and harsh."""

Trial = tuple[nn.Module, float]
"""A chain in the place of a layer, and its relative error."""

Weights = Sequence[tuple[float, float]]
"""Relative errors of a layer, ascending, each with what an error of that size costs per unit of its square."""


@dataclass(frozen=True)
class Weighed:
    """What errors at layers cost the model.

    :param weights: by layer name; empty where that is not known.
    :param unit: what these costs are in, as ``"nats"``; None where that is not known.
    """

    weights: Mapping[str, Weights] = field(default_factory=dict)
    unit: str | None = None


def weight_at(weights: Weights, error: float) -> float:
    """What a relative error costs per unit of its square: between those tried in logarithms, beyond them as the last.

    >>> round(weight_at([(0.1, 1.0), (0.4, 4.0)], 0.2), 6), weight_at([(0.1, 1.0), (0.4, 4.0)], 0.01)
    (2.0, 1.0)

    :param weights: of the layer; where there are none, 1 is returned.
    :param error: the relative error.
    """
    if not weights:
        return 1.0
    errors, values = zip(*weights, strict=True)
    if not error > errors[0] or len(weights) == 1:
        return float(values[0])
    place = min(bisect.bisect_left(errors, error), len(errors) - 1)
    slope = math.log(values[place] / values[place - 1]) / math.log(errors[place] / errors[place - 1])
    return float(values[place] * (error / errors[place]) ** slope)


def try_out(layer: Layer, module: nn.Module, problem: Problem, moments: Inputs | None) -> list[Trial]:
    """Chains with errors like those to come, from the decomposer that is quickest to solve.

    At the same relative error, chains of different decomposers cost a network about the same; chains of different
    errors do not, even per squared error, because the directions that matter least are dropped first.

    :param layer: whose adapter builds the chains.
    :param module: its module, with the bias.
    :param problem: its kernel and the norm.
    :param moments: the moments of its input, or None.
    :return: the chains with their relative errors in the norm, ascending; empty where no rank is good for a trial.
    """
    if not is_finite(problem):
        return []
    spectrum = Spectrum.of(problem)
    # the ranks that users want have no part in how much a layer matters
    points = [point for point in spectrum.points(1) if 0 < point.error < 1]
    measured = as_measured(problem, moments)
    energy = float(measured.energy)
    weight = module.get_parameter("weight")
    trials: dict[float, Trial] = {}
    for wanted in TRIAL_ERRORS if points else ():
        [rank] = min(points, key=lambda point: abs(math.log(point.error / wanted))).rank
        factorization, _ = spectrum.chain(rank)
        error = measured_error(measured, factorization, energy)
        if not error > 0:
            continue
        bias = corrected(module._parameters.get("bias"), problem, factorization, moments)
        factors = factorization.map(lambda factor: factor.to(weight))
        # built here and not by make_chain, which would hand over the hooks that the layer has while it is watched
        chain = layer.adapter.build(module, factors, None if bias is None else bias.to(weight))
        trials[error] = chain.eval(), error
    return [trials[error] for error in sorted(trials)]


def weigh(
    model: nn.Module,
    trials: Mapping[str, Sequence[Trial]],
    batches: Sequence[object],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    steps: Steps = SILENT,
    outputs: Outputs | None = None,
) -> dict[str, list[tuple[float, float]]]:
    r"""What errors at each layer are expected to cost the model, in the unit of its outputs.

    To second order a change d of a layer's output costs :math:`E[(g\cdot d)^2] / 2`, where g are gradients whose second
    moments are the curvature (see :func:`lowrank_plugin.statistics.gradients.pull_back`). The product runs over
    channels *and* positions: errors at neighbouring positions are alike, and where they are averaged later, as before a
    classifier, that decides.

    >>> model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(32, 4)
    >>> chain = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3))
    >>> [(error, cost)] = weigh(model, {"0": [(chain, 0.5)]}, [x])["0"]
    >>> error, cost > 0
    (0.5, True)

    :param model: the network, as it was.
    :param trials: chains for each layer, their errors ascending.
    :param batches: model inputs.
    :param samples: how many samples are used.
    :param seed: seed of the random draws.
    :param steps: hears of each batch, as the step ``"weigh"``.
    :param outputs: what the model's outputs are; None to judge by what they look like. Its ``unit`` is that of the
        costs.
    :return: by layer name, for each trial its error and its cost per squared error, which never falls; empty where the
        model's output cannot be differentiated.
    """
    inner: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}

    def watching(name: str, chains: Sequence[Trial]) -> Watch:
        def watch(
            module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor
        ) -> Callable[[Tensor], None]:
            changes = [chain(layer_input(args, kwargs)) - output for chain, _ in chains]

            def receive(gradient: Tensor) -> None:
                rows = [(gradient * change).flatten(1).sum(dim=1, dtype=torch.float64) for change in changes]
                # a layer that is called more than once puts in an error each time
                inner[name] = torch.stack(rows) + inner.get(name, 0)

            return receive

        return watch

    def after(batch: object) -> None:
        size = batch_size(batch)
        for name, products in inner.items():
            # where the first axis is more than samples, those of one sample stand together
            whole = products.shape[1] % size == 0
            by_sample = products.unflatten(1, (size, -1)).sum(dim=2) if whole else products
            sums[name] = by_sample.square().sum(dim=1) + sums.get(name, 0)
        inner.clear()

    squares = pull_back(
        model,
        {name: watching(name, chains) for name, chains in trials.items()},
        batches,
        sums,
        samples=samples,
        seed=seed,
        description="Weighing layers",
        steps=steps,
        after=after,
        outputs=outputs,
    )
    return {name: _rising(trials[name], (each / 2).tolist()) for name, each in squares.items()}


def _rising(trials: Sequence[Trial], costs: Sequence[float]) -> list[tuple[float, float]]:
    errors = [error for _, error in trials]
    weights = [cost / error**2 for cost, error in zip(costs, errors, strict=True)]
    return list(zip(errors, accumulate(weights, max), strict=True))
