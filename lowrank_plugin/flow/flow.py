# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The flow, one way: survey, collect, propose, allocate, fit, replace, repair."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lowrank_hooks import CostModelRecord, DecomposerRecord, Point, Rank, RankPolicyRecord
from lowrank_plugin.chains import fitting
from lowrank_plugin.chains.record import RECORD, make_record
from lowrank_plugin.errors import PlanError
from lowrank_plugin.flow.clock import make_clock
from lowrank_plugin.flow.sources import Observing
from lowrank_plugin.layers.replacement import make_chain, replace
from lowrank_plugin.layers.scopes import matches
from lowrank_plugin.plugins import DECOMPOSERS, LAYER_ADAPTERS, RANK_POLICIES, manager
from lowrank_plugin.ranks import planning
from lowrank_plugin.ranks.allocation import Candidates, Chosen, chains_of
from lowrank_plugin.ranks.budgets import unit_of
from lowrank_plugin.ranks.measured_budget import meet
from lowrank_plugin.ranks.proposals import Pricing, Proposal, by_hand, competitors, error_curves, propose
from lowrank_plugin.ranks.roofline import smoothed
from lowrank_plugin.repair.checkpoint import Errors, Notebook
from lowrank_plugin.repair.distill import distill
from lowrank_plugin.repair.moments import match_moments
from lowrank_plugin.statistics.snapshot import digest
from lowrank_plugin.support import processes

logger = logging.getLogger("lowrank_plugin")


class Flow(Observing):
    """One model on its way through all steps; each method is a step and needs those before it.

    :param arguments: of :class:`Observing`.
    :raises ConfigurationError: where a name in the settings is unknown, or the runtime, the device or the norm cannot
        be used.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.records = competitors(self.settings)
        self.clock = make_clock(self.model, self.sample, self.survey, self.settings)
        self._fits: dict[tuple[str, str, Rank], fitting.Fitted | str] = {}

    def plan(self) -> dict[str, Any]:
        """Choose a decomposer and a rank for every layer."""
        candidates = self.candidates()
        unit, share = unit_of(self.settings)
        if (clock := self.clock) is None or unit.measure is None or share is None:
            return self.predicted(self.write(candidates, self._chosen(candidates)))
        trial = meet(candidates, share, lambda chosen: processes.agreed(clock.network(chains_of(chosen))))
        costs = {name: [candidates.proposals[name][0].cost, each.cost] for name, each in trial.chosen.items()}
        return clock.written(self.write(candidates, trial.chosen, trial.limit), costs, trial.whole)

    def predicted(self, plan: dict[str, Any]) -> dict[str, Any]:
        """A plan with what its chains will cost in the runtime, where one is given."""
        return plan if self.clock is None else processes.agreed(self.clock.predicted(plan))

    def candidates(self) -> Candidates:
        """Look at the data and list the choices of every layer, with their errors and costs."""
        self.collect(list(self.survey.layers))
        names = list(self.survey.layers)
        if self.norm == "two-sided":
            self.differentiate(names)
        weights = self.weigh(names) if self.settings.budget else {}
        unit, _ = unit_of(self.settings)
        proposals = self._proposals(unit)
        hand = frozenset(name for name in proposals if self._hand(name) is not None)
        policy: RankPolicyRecord = manager().find(RANK_POLICIES, self.settings.policy)
        seen = [name for name in proposals if self.settings.budget and name not in hand]
        insights = {name: policy.inspect(self._problem(name)) for name in seen} if policy.inspect else {}
        whole = self._whole(unit.name, proposals)
        return Candidates(proposals, hand, weights, policy, whole, insights, self._left_alone())

    def _left_alone(self) -> str:
        """Why the largest of the layers that are not compressed is not, for those whose budget cannot be met."""

        def size(name: str) -> int:
            numbers = self.model.get_submodule(name).parameters()
            return sum(each.numel() for each in numbers if not nn.parameter.is_lazy(each))

        if not self.survey.refusals:
            return ""
        largest = max(self.survey.refusals, key=size)
        return f"The largest layer left alone is {largest!r}: {self.survey.refusals[largest]}."

    def _chosen(self, candidates: Candidates) -> Chosen:
        _, share = unit_of(self.settings)
        if share is not None:
            return candidates.within_share(share)
        error = (self.settings.budget or {}).get("error")
        return candidates.by_hand() if error is None else candidates.within_error(error)

    def write(self, candidates: Candidates, chosen: Chosen, share: float | None = None) -> dict[str, Any]:
        """Write choices down as a plan.

        :param candidates: what there was to choose from.
        :param chosen: the choices.
        :param share: of the predicted cost, that they were allowed; None takes what the budget says.
        """
        choices = {name: (candidates.proposals[name][0], each) for name, each in chosen.items()}
        reasons = {
            name: "no chain of the competing decomposers would cost less"
            if self.settings.budget
            else "no rank was given for it"
            for name in chosen
            if len(candidates.proposals[name]) == 1
        }
        _, budget = unit_of(self.settings)
        allocation = candidates.quality(chosen, share or budget) if self.settings.budget else None
        made = planning.make_plan(
            self.survey, self.settings, self.norm, choices, reasons, allocation, self.memory, self._effective_ranks
        )
        return processes.agreed(planning.with_solver_bytes(made, self.survey, self.model))

    def _proposals(self, unit: CostModelRecord) -> dict[str, list[Proposal]]:
        measured = self.clock.measured if self.clock is not None and unit.measure is not None else None

        def propose_for(names: list[str]) -> list[list[Proposal]]:
            curves: Sequence[Mapping[str, Sequence[Point]]] = [{}] * len(names)
            if self.settings.budget is not None and self._hand(names[0]) is None:
                curves = error_curves([self._problem(name) for name in names], self.records)
            return [choices(name, of_layer) for name, of_layer in zip(names, curves, strict=True)]

        def choices(name: str, curves: Mapping[str, Sequence[Point]]) -> list[Proposal]:
            layer, hand = self.survey.layers[name], self._hand(name)
            pricing = Pricing(layer, self.model.get_submodule(name), unit, measured, self._biases(name))
            if hand is not None:
                return by_hand(layer, hand, pricing, self.records)
            return propose(layer.shape, curves, pricing, self.records)

        layers = list(self.survey.layers)
        proposals = self._each("propose", "Computing error curves", layers, propose_for, kind=self._hand)
        if measured is None or not proposals:
            return proposals
        by_user = [name for name in layers if self._hand(name) is not None]
        return smoothed(proposals, self.survey.layers, self.model, by_user)

    def _biases(self, name: str) -> int:
        """How many biases a chain gets that its layer lacks: the correction of its output's mean needs them."""
        matched = self.norm != "frobenius" or (bool(self.batches) and self.settings.repair != "none")
        shape, has_one = self.survey.layers[name].shape, isinstance(self.model.get_submodule(name).bias, torch.Tensor)
        return 0 if has_one or not matched else shape.groups * shape.out_channels

    def _hand(self, name: str) -> Rank | None:
        return next((rank for scope, rank in self.settings.ranks.items() if matches(name, scope)), None)

    def _whole(self, unit: str, proposals: Mapping[str, Sequence[Proposal]]) -> float:
        """What the whole model costs."""
        if self.clock is not None and self.clock.unit == unit:
            return processes.agreed(self.clock.original())
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
            lambda names: self._solve(names, *ranks[names[0]]),
            kind=ranks.__getitem__,
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

    def _solve(self, names: list[str], decomposer: str, rank: Rank) -> Sequence[fitting.Fitted | str]:
        """Fit layers of one shape; or the reason why that failed."""
        record: DecomposerRecord = manager().find(DECOMPOSERS, decomposer)
        modules = [self.model.get_submodule(name) for name in names]
        biases = [module.bias if isinstance(module.bias, torch.Tensor) else None for module in modules]
        problems, moments = [self._problem(name) for name in names], [self._moments(name) for name in names]
        try:
            return fitting.fit(problems, record.decomposer, rank, biases, moments)
        except (torch.linalg.LinAlgError, ValueError) as error:
            if len(names) > 1:  # which one it was is seen alone
                return [each for name in names for each in self._solve([name], decomposer, rank)]
            if isinstance(error, torch.linalg.LinAlgError):
                return [f"its fit by {decomposer!r} failed: {error}"]
            msg = f"Layer {names[0]!r} cannot be factorised by {decomposer!r} at rank {list(rank)}: {error}"
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
                self.differentiate([name for name in ranks if name in self.survey.layers])
            ranks = {name: rank for name, rank in ranks.items() if name in self.survey.layers}
        fitted = self.fit(ranks)
        templates = {name: self.model.get_submodule(name) for name in self.survey.layers}
        original = copy.deepcopy(self.model) if inplace and self.settings.repair == "distill" else self.model
        compressed = self.model if inplace else copy.deepcopy(self.model)
        for name, each in fitted.items():
            old = compressed.get_submodule(name)
            chain = make_chain(old, self.survey.layers[name].adapter, each.factorization, each.bias)  # type: ignore[arg-type]
            if old is compressed:
                compressed = chain
            replace(compressed, old, chain)
        distilled: Errors = {}
        if fitted and self.batches and self.settings.repair != "none":
            distilled = self._repair(original, compressed, templates, {name: ranks[name] for name in fitted})
        elif fitted and self.statistics is not None and self.settings.repair != "none":
            logger.warning("Repair is skipped: it runs the network on data, but only statistics were given.")
        record = make_record(plan, self.survey, fitted, templates, compressed)
        if distilled:
            record["distilled"] = {name: list(errors) for name, errors in distilled.items()}
        setattr(compressed, RECORD, record)
        return compressed

    def _repair(
        self,
        original: nn.Module,
        compressed: nn.Module,
        templates: Mapping[str, nn.Module],
        chains: Mapping[str, tuple[str, Rank]],
    ) -> Errors:
        """Match the moments of the chains' outputs, then distil; the errors of the distilled blocks."""
        names = list(chains)
        layers = {name: self.survey.layers[name] for name in names}
        adapters = manager().registered(LAYER_ADAPTERS)
        match_moments(compressed, templates, layers, self._outputs(names), self.batches, adapters, self.steps)
        settings = self.settings
        if settings.repair != "distill":
            return {}
        small = [name for name in names if next(compressed.get_submodule(name).parameters()).dtype.itemsize < 4]
        if small:
            logger.warning("Distillation is skipped: it needs float32, but %s is not; moments are matched.", small[0])
            return {}
        kernels = [layer.adapter.kernel(templates[name]) for name, layer in layers.items()]
        slack, limits = settings.stability and settings.stability.slack, settings.distillation
        chosen = [chains, slack, settings.seed, limits.steps, limits.network_steps]
        key = digest([kernels, self.batches]) + json.dumps(chosen)
        return distill(
            original,
            compressed,
            names,
            self.batches,
            adapters=adapters,
            iterations=limits.steps,
            network_iterations=limits.network_steps,
            seed=settings.seed,
            notebook=Notebook(limits.checkpoint, compressed, names, key),
            steps=self.steps,
        )

    def finish(self, plan: Mapping[str, Any], inplace: bool, compressed: nn.Module | None = None) -> nn.Module:
        """Compress, unless that is done, and measure the outcome where a runtime is given."""
        compressed = self.compress(plan, inplace) if compressed is None else compressed
        return compressed if self.clock is None else self.clock.timed(compressed, plan)
