# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The first steps of the flow: the survey of a model, and what is seen of it on data."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from lowrank_hooks import Problem, StepEvent
from lowrank_plugin.errors import CalibrationError, ConfigurationError, PlanError
from lowrank_plugin.layers.survey import Survey, survey
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
from lowrank_plugin.settings import Settings
from lowrank_plugin.solvers import batching
from lowrank_plugin.statistics import Statistics, exchange, passes
from lowrank_plugin.statistics.collection import Observed, collect, warn_of_few
from lowrank_plugin.statistics.gradients import collect_gradients
from lowrank_plugin.statistics.moments import ChannelStatistics
from lowrank_plugin.statistics.norms import effective_rank, norm_of
from lowrank_plugin.statistics.problems import make_problem
from lowrank_plugin.statistics.snapshot import summarise
from lowrank_plugin.statistics.vectors import Inputs
from lowrank_plugin.statistics.weighing import Trial, Weights, try_out, weigh
from lowrank_plugin.support import processes
from lowrank_plugin.support.batches import one_sample, take_batches
from lowrank_plugin.support.progress import Progress, Steps

logger = logging.getLogger("lowrank_plugin")

T = TypeVar("T")


class Observing:
    """One model, what of it can be compressed, and what is seen of it while it runs on data.

    :param model: the network, which is not changed.
    :param data: calibration data, or None.
    :param example: an input for the model; None takes the first batch of the data.
    :param settings: what the user asked for.
    :param progress: shows bars.
    :param statistics: of the model, in place of what would be seen of the data; or None.
    :raises ConfigurationError: where the device or the norm cannot be used.
    :raises CalibrationError: where the data or the example cannot be used.
    :raises StatisticsError: where the statistics are of another network.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        example: Any,
        settings: Settings,
        progress: Progress,
        statistics: Statistics | None = None,
    ) -> None:
        self.model, self.settings, self.progress, self.statistics = model, settings, progress, statistics
        self.steps = Steps(progress, manager().observe)
        check_device(settings)
        self.norm = norm_of(settings, data is not None or statistics is not None)
        self.batches = [] if data is None else take_batches(model, data, settings.calibration.samples)
        first = self._example() if example is None else example
        self.survey = self._surveyed(first)
        if statistics is not None:
            statistics.check(model, self.survey.layers)
        self.sample = one_sample(first) if example is None else example
        self.observed: dict[str, Observed] = {}
        self.memory: dict[str, int] = {}
        self.gradients: dict[str, torch.Tensor] = {}
        self._problems: dict[str, Problem] = {}
        self._effective_ranks: dict[str, float] = {}

    def _example(self) -> Any:
        if self.batches:
            return self.batches[0]
        if self.statistics is not None:
            return self.statistics.inputs()
        msg = "Give calibration data or an example_input: the model is run once to see its layers and their sizes."
        raise CalibrationError(msg)

    def _surveyed(self, example: Any) -> Survey:
        found = survey(self.model, example, self.settings, manager().registered(LAYER_ADAPTERS))
        manager().hook.lowrank_step(event=StepEvent("survey", len(found.layers), len(found.layers)))
        return found

    def collect(self, names: Sequence[str]) -> None:
        """Look at some layers while the model runs; those with NaN or infinite inputs are refused from now on."""
        if self.statistics is not None:
            self.observed = {name: self.statistics.layers[name] for name in names if name in self.statistics.layers}
        elif self.batches:
            self.observed = self._passes(names) if self.norm != "frobenius" else self._collect(names, patches=False)
        else:
            return
        for name in names:
            if name not in self.survey.layers:
                continue
            if name not in self.observed:
                self._refuse(name, "its forward was not called on the calibration data")
            elif self.norm != "frobenius" and not self.observed[name].patches.finite:
                self._refuse(name, "its inputs contain NaN or infinity")
        if self.norm != "frobenius":
            warn_of_few(self.survey.layers, self.observed)

    def _passes(self, names: Sequence[str]) -> dict[str, Observed]:
        """Look at layers in as many passes as the memory allowed asks for."""
        layers = {name: self.survey.layers[name] for name in names}
        allowed = self.settings.calibration
        needed = passes.divide(self.model, layers, self.batches, allowed.positions, allowed.memory_gb)
        for name, reason in needed.refusals.items():
            self._refuse(name, reason)
        self.memory = {"peak": needed.peak, "passes": len(needed.groups)}
        return passes.collect_in_passes(functools.partial(self._collect, patches=True), needed.groups)

    def _collect(self, names: Sequence[str], patches: bool) -> dict[str, Observed]:
        look = functools.partial(
            collect,
            self.model,
            {name: self.survey.layers[name] for name in names},
            self.batches,
            patches=patches,
            positions=self.settings.calibration.positions,
            seed=self.settings.seed,
            places=[place for place, _ in processes.share(self.batches)],
            steps=self.steps,
        )
        return exchange.combined(processes.together(look), next(self.model.parameters()).device)

    def _moments(self, name: str) -> Inputs | None:
        return None if self.norm == "frobenius" else self.observed[name].inputs

    def _refuse(self, name: str, reason: str) -> None:
        if self.settings.on_failure == "raise":
            msg = f"Layer {name!r} cannot be compressed: {reason}."
            raise PlanError(msg)
        logger.warning("Layer %s stays dense: %s.", name, reason)
        kept = {other: layer for other, layer in self.survey.layers.items() if other != name}
        self.survey = dataclasses.replace(self.survey, layers=kept, refusals={**self.survey.refusals, name: reason})

    def differentiate(self, names: Sequence[str]) -> None:
        """Collect the gradients of the model's output with respect to some layers' outputs."""
        layers = {name: self.survey.layers[name] for name in names}
        if self.statistics is not None:
            known = self.statistics.gradients
            self.gradients = {name: known[name] for name in names if name in known}
        elif self.batches and layers:
            seed = self.settings.seed
            self.gradients = collect_gradients(self.model, layers, self.batches, seed=seed, steps=self.steps)

    def weigh(self, names: Sequence[str]) -> dict[str, Weights]:
        """What errors at each layer are expected to cost the model, in nats per squared relative error."""
        if self.statistics is not None:
            weights: Mapping[str, Weights] = self.statistics.costs
        elif self.batches:
            tried = self._each("trial", "Solving trials", names, lambda batch: [self._try(name) for name in batch])
            trials = {name: found for name, found in tried.items() if found}
            weights = weigh(self.model, trials, self.batches, seed=self.settings.seed, steps=self.steps)
        else:
            return {}
        if not all(math.isfinite(value) for each in weights.values() for _, value in each):
            logger.warning("Gradients of the model's output are not finite: all layers are weighted alike.")
            return {}
        # a layer that the output does not depend on at all would have no use for any rank
        return {name: weights[name] for name in names if name in weights and weights[name][0][1] > 0}

    def _try(self, name: str) -> list[Trial]:
        problem, module = self._problem(name), self.model.get_submodule(name)
        try:
            return try_out(self.survey.layers[name], module, problem, self._moments(name))
        except (torch.linalg.LinAlgError, ValueError) as error:
            logger.warning("Layer %s is not weighed: %s", name, error)
            return []

    def _each(
        self,
        step: str,
        description: str,
        names: Sequence[str],
        work: Callable[[list[str]], Sequence[T]],
        kind: Callable[[str], Hashable] = lambda name: name,
    ) -> dict[str, T]:
        """Do some work on each layer; on layers of one shape, dtype and kind together."""

        def like(name: str) -> Hashable:
            weight = next(self.model.get_submodule(name).parameters())
            return kind(name), self.survey.layers[name].shape, weight.dtype, weight.device

        batches = {batch[0]: batch for batch in batching.batches(names, like, self._problem_bytes)}

        def run(mine: list[str]) -> dict[str, dict[str, T]]:
            found: dict[str, dict[str, T]] = {}
            steps, total = itertools.count(1), sum(len(batches[first]) for first in mine)
            for first in self.progress(mine, description=description, total=len(mine)):
                found[first] = dict(zip(batches[first], work(batches[first]), strict=True))
                for name in batches[first]:
                    manager().hook.lowrank_step(event=StepEvent(step, next(steps), total, name))
            return found

        parts = processes.divided(run, list(batches)).values()
        found = {name: each for part in parts for name, each in part.items()}
        return {name: found[name] for name in names}

    def _problem_bytes(self, name: str) -> int:
        """Bytes of a layer's kernel and covariance, in float64 at most."""
        shape = self.survey.layers[name].shape
        columns = shape.in_channels * shape.taps
        covariance = shape.groups * columns**2 if self.norm != "frobenius" else 0
        return 8 * (shape.parameters + covariance)

    def _problem(self, name: str) -> Problem:
        layer = self.survey.layers[name]
        if name not in self._problems:
            if self.memory.get("passes", 1) > 1:
                self._problems.clear()
            gradient = self.gradients.get(name) if self.norm == "two-sided" else None
            module = self.model.get_submodule(name)
            moments = self._moments(name)
            problem = make_problem(layer, module, moments, gradient, self.settings)
            if moments is not None:
                self._effective_ranks[name] = effective_rank(problem.norm)
            self._problems[name] = problem
        return self._problems[name]

    def _outputs(self, names: Sequence[str]) -> dict[str, list[ChannelStatistics]]:
        """What some layers put out on the batches; given statistics may be of other ones."""
        observed = self.observed if self.statistics is None else self._collect(names, patches=False)
        return {name: observed[name].outputs if name in observed else [] for name in names}

    def summarise(self) -> Statistics:
        """Look at all layers and keep what was seen."""
        names = list(self.survey.layers)
        self.observed = self._passes(names)
        self.differentiate(names)
        costs = self.weigh(names)
        return summarise(
            self.model, self.survey.layers, self.observed, self.gradients, costs, self.batches, self.settings
        )


def check_device(settings: Settings) -> None:
    """See that the device can be used.

    :raises ConfigurationError: where it cannot.
    """
    try:
        torch.empty(0, device=settings.device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        msg = f"The device {settings.device!r} cannot be used here: {str(error).splitlines()[0]}"
        raise ConfigurationError(msg) from error
