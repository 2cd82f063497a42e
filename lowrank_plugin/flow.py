# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The flow, one way: survey, collect, propose, allocate, fit, replace, repair."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from lowrank_hooks import CostModelRecord, DecomposerRecord, Problem, Rank, RankPolicyRecord, StepEvent
from lowrank_plugin import distributed, fitting, memory, planning
from lowrank_plugin.allocation import Candidates, Chosen, chains_of
from lowrank_plugin.batches import Progress, one_sample, take_batches
from lowrank_plugin.clock import make_clock
from lowrank_plugin.collection import Observed, collect, warn_of_few
from lowrank_plugin.errors import CalibrationError, PlanError
from lowrank_plugin.gradients import collect_gradients
from lowrank_plugin.measured_budget import meet
from lowrank_plugin.moments import ChannelStatistics, Moments, effective_rank
from lowrank_plugin.plugins import manager
from lowrank_plugin.propose import Pricing, Proposal, by_hand, propose
from lowrank_plugin.repair import match_moments
from lowrank_plugin.replacement import make_chain, replace
from lowrank_plugin.reporting import RECORD, make_record
from lowrank_plugin.resolving import check_device, competitors, norm_of, unit_of
from lowrank_plugin.scopes import matches
from lowrank_plugin.settings import Settings
from lowrank_plugin.statistics import Statistics, summarise
from lowrank_plugin.survey import Survey, survey

logger = logging.getLogger("lowrank_plugin")

T = TypeVar("T")


class Flow:
    """One model on its way through the steps; each method is a step and needs those before it.

    :param model: the network, which is not changed.
    :param data: calibration data, or None.
    :param example: an input for the model; None takes the first batch of the data.
    :param settings: what the user asked for.
    :param progress: shows bars.
    :param statistics: of the model, in place of what would be seen of the data; or None.
    :raises ConfigurationError: where a name in the settings is unknown or the norm does not go with the data.
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
        check_device(settings)
        self.records = competitors(settings)
        self.norm = norm_of(settings, data is not None or statistics is not None)
        self.batches = [] if data is None else take_batches(model, data, settings.samples)
        first = self._example() if example is None else example
        self.survey = self._surveyed(first)
        if statistics is not None:
            statistics.check(model, self.survey.layers)
        self.clock = make_clock(model, one_sample(first) if example is None else example, self.survey, settings)
        self.observed: dict[str, Observed] = {}
        self.memory: dict[str, int] = {}
        self.gradients: dict[str, torch.Tensor] = {}
        self._problems: dict[str, Problem] = {}
        self._effective_ranks: dict[str, float] = {}
        self._fits: dict[tuple[str, str, Rank], fitting.Fitted | str] = {}

    def _example(self) -> Any:
        if self.batches:
            return self.batches[0]
        if self.statistics is not None:
            return self.statistics.inputs()
        msg = "Give calibration data or an example_input: the model is run once to see its layers and their sizes."
        raise CalibrationError(msg)

    def _surveyed(self, example: Any) -> Survey:
        found = survey(self.model, example, self.settings, manager().registered("layer adapter"))
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
        passes = memory.divide(self.model, layers, self.batches, self.settings)
        for name, reason in passes.refusals.items():
            self._refuse(name, reason)
        self.memory = {"peak": passes.peak, "passes": len(passes.groups)}
        return memory.collect_in_passes(functools.partial(self._collect, patches=True), passes.groups)

    def _collect(self, names: Sequence[str], patches: bool) -> dict[str, Observed]:
        look = functools.partial(
            collect,
            self.model,
            {name: self.survey.layers[name] for name in names},
            self.batches,
            patches=patches,
            positions=self.settings.positions,
            seed=self.settings.seed,
            places=[place for place, _ in distributed.share(self.batches)],
            progress=self.progress,
        )
        return distributed.combined(distributed.together(look), next(self.model.parameters()).device)

    def _moments(self, name: str) -> Moments | None:
        return None if self.norm == "frobenius" else self.observed[name].inputs

    def _refuse(self, name: str, reason: str) -> None:
        if self.settings.on_failure == "raise":
            msg = f"Layer {name!r} cannot be compressed: {reason}."
            raise PlanError(msg)
        logger.warning("Layer %s stays dense: %s.", name, reason)
        kept = {other: layer for other, layer in self.survey.layers.items() if other != name}
        self.survey = dataclasses.replace(self.survey, layers=kept, refusals={**self.survey.refusals, name: reason})

    def weigh(self, names: Sequence[str]) -> None:
        """Collect the gradients of the model's output with respect to some layers' outputs."""
        layers = {name: self.survey.layers[name] for name in names}
        if self.statistics is not None:
            known = self.statistics.gradients
            self.gradients = {name: known[name] for name in names if name in known}
        elif self.batches and layers:
            seed = self.settings.seed
            self.gradients = collect_gradients(self.model, layers, self.batches, seed=seed, progress=self.progress)

    def _weights(self) -> dict[str, float]:
        """What a squared relative error of 1 at each layer is expected to cost the model; needs the norm."""
        weights = {}
        for name, gradient in self.gradients.items():
            problem = self._problem(name)
            mean = gradient.diagonal(dim1=-2, dim2=-1).mean(dim=-1).to(problem.kernel)
            if self.norm == "covariance":
                weights[name] = float((mean * problem.norm.squared(problem.matrix)).sum()) / 2
            else:
                weights[name] = float(problem.energy) / 2
        if not all(math.isfinite(weight) for weight in weights.values()):
            logger.warning("Gradients of the model's output are not finite: all layers are weighted alike.")
            return {}
        return weights

    def plan(self) -> dict[str, Any]:
        """Choose a decomposer and a rank for every layer."""
        candidates = self.candidates()
        unit, limit = unit_of(self.settings)
        if (clock := self.clock) is None or unit.measure is None or limit is None:
            return self.predicted(self.write(candidates, self._chosen(candidates)))
        trial = meet(candidates, limit, lambda chosen: distributed.agreed(clock.network(chains_of(chosen))))
        costs = {name: [candidates.proposals[name][0].cost, each.cost] for name, each in trial.chosen.items()}
        return clock.written(self.write(candidates, trial.chosen), costs, trial.whole)

    def predicted(self, plan: dict[str, Any]) -> dict[str, Any]:
        """A plan with what its chains will cost in the runtime, where one is given."""
        return plan if self.clock is None else distributed.agreed(self.clock.predicted(plan))

    def candidates(self) -> Candidates:
        """Look at the data and list the choices of every layer, with their errors and costs."""
        self.collect(list(self.survey.layers))
        # in the Frobenius norm an error says nothing about the output, so no weight can be derived from its gradients
        if self.norm == "two-sided" or (self.norm == "covariance" and self.settings.budget):
            self.weigh(list(self.survey.layers))
        weights = self._weights()
        unit, _ = unit_of(self.settings)
        proposals = self._proposals(unit)
        hand = frozenset(name for name in proposals if self._hand(name) is not None)
        policy: RankPolicyRecord = manager().find("rank policy", self.settings.policy)
        seen = [name for name in proposals if self.settings.budget and name not in hand]
        insights = {name: policy.inspect(self._problem(name)) for name in seen} if policy.inspect else {}
        return Candidates(proposals, hand, weights, policy, self._whole(unit.name, proposals), insights)

    def _chosen(self, candidates: Candidates) -> Chosen:
        _, limit = unit_of(self.settings)
        if self.settings.budget is None or limit is None:
            return candidates.by_hand()
        if "error" in self.settings.budget:
            return candidates.within_error(limit)
        return candidates.within_share(limit)

    def write(self, candidates: Candidates, chosen: Chosen) -> dict[str, Any]:
        """Write choices down as a plan.

        :param candidates: what there was to choose from.
        :param chosen: the choices.
        """
        choices = {name: (candidates.proposals[name][0], each) for name, each in chosen.items()}
        reasons = {
            name: "no chain of the competing decomposers would cost less"
            if self.settings.budget
            else "no rank was given for it"
            for name in chosen
            if len(candidates.proposals[name]) == 1
        }
        allocation = candidates.quality(chosen, self._share()) if self.settings.budget else None
        made = planning.make_plan(
            self.survey, self.settings, self.norm, choices, reasons, allocation, self.memory, self._effective_ranks
        )
        return distributed.agreed(planning.with_solver_bytes(made, self.survey, self.model))

    def _share(self) -> float | None:
        """What may remain of the cost; None where the budget is not one of cost."""
        units = manager().registered("cost model")
        return next((share for unit, share in (self.settings.budget or {}).items() if unit in units), None)

    def _proposals(self, unit: CostModelRecord) -> dict[str, list[Proposal]]:
        measured = self.clock.measured if self.clock is not None and unit.measure is not None else None

        def propose_for(name: str) -> list[Proposal]:
            layer, module = self.survey.layers[name], self.model.get_submodule(name)
            pricing, hand = Pricing(layer, module, unit, measured), self._hand(name)
            if hand is not None:
                return by_hand(layer, hand, pricing, self.records)
            if self.settings.budget is not None:
                return propose(self._problem(name), pricing, self.records)
            return pricing.proposals(())

        return self._each("propose", "Computing error curves", list(self.survey.layers), propose_for)

    def _each(self, step: str, description: str, names: Sequence[str], work: Callable[[str], T]) -> dict[str, T]:
        """Do some work on each layer."""

        def run(mine: list[str]) -> dict[str, T]:
            found = {}
            for done, name in enumerate(self.progress(mine, description=description, total=len(mine)), start=1):
                found[name] = work(name)
                manager().hook.lowrank_step(event=StepEvent(step, done, len(mine), name))
            return found

        return distributed.divided(run, names)

    def _problem(self, name: str) -> Problem:
        layer = self.survey.layers[name]
        if name not in self._problems:
            if self.memory.get("passes", 1) > 1:
                self._problems.clear()
            gradient = self.gradients.get(name) if self.norm == "two-sided" else None
            module = self.model.get_submodule(name)
            moments = self._moments(name)
            problem = fitting.make_problem(layer, module, moments, gradient, self.settings)
            if problem.norm.covariance is not None:
                self._effective_ranks[name] = effective_rank(problem.norm.covariance)
            self._problems[name] = problem
        return self._problems[name]

    def _hand(self, name: str) -> Rank | None:
        return next((rank for scope, rank in self.settings.ranks.items() if matches(name, scope)), None)

    def _whole(self, unit: str, proposals: Mapping[str, Sequence[Proposal]]) -> float:
        """What the whole model costs."""
        if self.clock is not None and self.clock.unit == unit:
            return distributed.agreed(self.clock.original())
        totals = {"macs": self.survey.macs * self.survey.samples, "parameters": float(self.survey.parameters)}
        return totals.get(unit, sum(of_layer[0].cost for of_layer in proposals.values()))

    def fit(self, ranks: Mapping[str, tuple[str, Rank]]) -> dict[str, fitting.Fitted]:
        """Solve for the factors of every layer of a plan.

        :raises PlanError: where a layer fails and ``on_failure`` is ``"raise"``.
        """
        keys = {name: (name, *choice) for name, choice in ranks.items()}
        new = self._each(
            "fit",
            "Fitting layers",
            [name for name, key in keys.items() if key not in self._fits],
            lambda name: self._solve(*keys[name]),
        )
        self._fits.update((keys[name], each) for name, each in new.items())
        fitted = {}
        for name, key in keys.items():
            each = self._fits[key]
            if isinstance(each, str):
                self._refuse(name, each)
            else:
                fitted[name] = each
        usable = fitting.usable(fitted)
        for name in fitted.keys() - usable.keys():
            self._refuse(name, f"its fit failed: {fitted[name].solution.status.value}")
        return usable

    def _solve(self, name: str, decomposer: str, rank: Rank) -> fitting.Fitted | str:
        """Fit one layer; or the reason why that failed."""
        record: DecomposerRecord = manager().find("decomposer", decomposer)
        moments, module = self._moments(name), self.model.get_submodule(name)
        bias = module.bias if isinstance(module.bias, torch.Tensor) else None
        try:
            return fitting.fit(self._problem(name), record.decomposer, rank, bias, moments)
        except torch.linalg.LinAlgError as error:
            return f"its fit by {decomposer!r} failed: {error}"
        except ValueError as error:
            msg = f"Layer {name!r} cannot be factorised by {decomposer!r} at rank {list(rank)}: {error}"
            raise PlanError(msg) from error

    def compress(self, plan: Mapping[str, Any], inplace: bool) -> nn.Module:
        """Fit, replace and repair.

        :param plan: the plan.
        :param inplace: whether the model itself is changed.
        :return: the compressed network, with the record of what was done.
        """
        ranks = planning.chosen_ranks(plan, self.survey)
        if not self.observed:
            self.collect(list(ranks))
            if self.norm == "two-sided":
                self.weigh([name for name in ranks if name in self.survey.layers])
            ranks = {name: rank for name, rank in ranks.items() if name in self.survey.layers}
        fitted = self.fit(ranks)
        templates = {name: self.model.get_submodule(name) for name in self.survey.layers}
        compressed = self.model if inplace else copy.deepcopy(self.model)
        for name, each in fitted.items():
            old = compressed.get_submodule(name)
            chain = make_chain(old, self.survey.layers[name].adapter, each.factorization, each.bias)  # type: ignore[arg-type]
            if old is compressed:
                compressed = chain
            replace(compressed, old, chain)
        if fitted and self.batches and self.settings.repair == "moments":
            layers = {name: self.survey.layers[name] for name in fitted}
            wanted = self._outputs(list(fitted))
            match_moments(compressed, templates, layers, wanted, self.batches, self.progress)
        elif fitted and self.statistics is not None and self.settings.repair != "none":
            logger.warning("Repair is skipped: it runs the network on data, but only statistics were given.")
        setattr(compressed, RECORD, make_record(plan, self.survey, fitted, templates, compressed))
        return compressed

    def finish(self, plan: Mapping[str, Any], inplace: bool, compressed: nn.Module | None = None) -> nn.Module:
        """Compress, unless that is done, and measure the outcome where a runtime is given."""
        compressed = self.compress(plan, inplace) if compressed is None else compressed
        return compressed if self.clock is None else self.clock.timed(compressed, plan)

    def _outputs(self, names: Sequence[str]) -> dict[str, list[ChannelStatistics]]:
        """What some layers put out on the batches; given statistics may be of other ones."""
        observed = self.observed if self.statistics is None else self._collect(names, patches=False)
        return {name: observed[name].outputs if name in observed else [] for name in names}

    def summarise(self) -> Statistics:
        """Look at all layers and keep what was seen."""
        names = list(self.survey.layers)
        self.observed = self._passes(names)
        self.weigh(names)
        return summarise(self.model, self.survey.layers, self.observed, self.gradients, self.batches, self.settings)
