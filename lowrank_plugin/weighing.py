# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What an error at each layer costs the model: measured with a trial error, all layers in one backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_hooks import Problem
from lowrank_plugin import distributed, fitting
from lowrank_plugin.batches import Progress, batch_size, enough, no_progress
from lowrank_plugin.gradients import SAMPLES, Watch, pull_back
from lowrank_plugin.moments import Moments
from lowrank_plugin.solvers.svd import Svd
from lowrank_plugin.survey import Layer, layer_input

TRIAL_ERROR = 0.2
"""Relative error of the trials: about what a layer gets when the cost of a network is halved."""


def trial(layer: Layer, module: nn.Module, problem: Problem, moments: Moments | None) -> tuple[nn.Module, float] | None:
    """A chain with an error like those to come, from the decomposer that is quickest to solve.

    :param layer: the layer.
    :param module: its module.
    :param problem: its kernel and the norm.
    :param moments: the moments of its input, or None.
    :return: the chain, and its relative error in the norm; None where no rank is good for a trial.
    """
    solver = Svd()
    points = [point for point in solver.curve(problem) if point.error > 0]
    if not points:
        return None
    rank = min(points, key=lambda point: abs(math.log(point.error / TRIAL_ERROR))).rank
    bias = module.bias if isinstance(module.bias, Tensor) else None
    fitted = fitting.fit(problem, solver, rank, bias, moments)
    if fitted.factorization is None or not fitted.output_error > 0:
        return None
    weight: Tensor = module.weight  # type: ignore[assignment]
    factors = fitted.factorization.map(lambda factor: factor.to(weight))
    # built here and not by make_chain, which would hand over the hooks that the layer has while it is watched
    chain = layer.adapter.build(module, factors, None if fitted.bias is None else fitted.bias.to(weight))
    return chain.eval(), fitted.output_error


def weigh(
    model: nn.Module,
    trials: Mapping[str, tuple[nn.Module, float]],
    batches: Sequence[Any],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Progress = no_progress,
) -> dict[str, float]:
    r"""The loss that a squared relative error of 1 at each layer is expected to cost the model, in nats.

    To second order a change d of a layer's output costs :math:`E[(g\cdot d)^2] / 2`, g the gradient of the model's
    log-likelihood for a label drawn from its own softmax. The product runs over channels *and* positions: errors at
    neighbouring positions are alike, and where they are averaged later, as before a classifier, that decides.

    :param model: the network, as it was.
    :param trials: for each layer a chain in its place and the chain's relative error.
    :param batches: model inputs.
    :param samples: how many samples are used.
    :param seed: seed of the drawn labels.
    :param progress: shows a bar.
    :return: by layer name; empty where the model's output cannot be differentiated.
    """
    inner: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}

    def watching(name: str, chain: nn.Module) -> Watch:
        def watch(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Callable[[Tensor], None]:
            change = chain(layer_input(args, kwargs)) - output

            def receive(gradient: Tensor) -> None:
                product = (gradient * change).flatten(1).sum(dim=1, dtype=torch.float64)
                # a layer that is called more than once puts in an error each time
                inner[name] = inner[name] + product if name in inner else product

            return receive

        return watch

    def after(batch: Any) -> None:
        for name, product in inner.items():
            # where the first axis is more than samples, those of one sample stand together
            by_sample = product.reshape(batch_size(batch), -1) if product.numel() % batch_size(batch) == 0 else product
            sums[name] = sums.get(name, product.new_zeros(())) + by_sample.sum(dim=-1).square().sum()
        inner.clear()

    chosen = enough(batches, samples)
    watches = {name: watching(name, chain) for name, (chain, _) in trials.items()}
    if not pull_back(model, watches, chosen, seed=seed, description="Weighing layers", progress=progress, after=after):
        return {}
    total = sum(batch_size(batch) for batch in chosen)
    device = next(model.parameters()).device
    costs = {name: float(each) / total / 2 for name, each in distributed.summed(sums, device).items()}
    return {name: cost / trials[name][1] ** 2 for name, cost in costs.items()}
