# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""From what is known of the layers to a plan: curves, weights, and a choice under the budget."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lowrank_hooks import Point, Rank
from lowrank_plugin.flow.meter import Meter
from lowrank_plugin.flow.problems import Problems
from lowrank_plugin.layers.holders import bias_of
from lowrank_plugin.layers.scopes import matches
from lowrank_plugin.plugins import RANK_POLICIES
from lowrank_plugin.ranks.allocation import Candidates, Chosen, chains_of
from lowrank_plugin.ranks.budgets import Budget, budget_of
from lowrank_plugin.ranks.measured_budget import meet
from lowrank_plugin.ranks.plan import Change, Plan
from lowrank_plugin.ranks.planning import make_plan, with_solver_bytes
from lowrank_plugin.ranks.proposals import Choices, Pricing, by_hand, competitors, error_curves, propose
from lowrank_plugin.ranks.roofline import smoothed
from lowrank_plugin.settings import Settings
from lowrank_plugin.statistics.weighing import Trial, Weighed, try_out
from lowrank_plugin.support import processes

logger = logging.getLogger(__name__)

ALIKE = "relative squared errors of the layers"
"""What losses are in where it is not known what errors at layers cost the model, and all of them count alike."""


@dataclass(frozen=True)
class Choice:
    """What there is to choose from for one model, and what is needed to write a choice down.

    :param problems: the problems of its layers.
    :param budget: what was asked for.
    :param candidates: the choices of every layer.
    :param unit: what losses are in; None where that is not known.
    """

    problems: Problems
    budget: Budget
    candidates: Candidates
    unit: str | None = None

    def write(self, chosen: Chosen, share: float | None = None) -> Plan:
        """Write choices down as a plan.

        :param chosen: for each layer one of its candidates.
        :param share: of the predicted cost, that they were allowed; None takes what the budget says.
        """
        subject, settings = self.problems.subject, self.problems.subject.settings
        of_layers = self.candidates.choices
        choices = {name: (of_layers[name].dense, each) for name, each in chosen.items()}
        reasons = {
            name: "no chain of the competing decomposers would cost less"
            if self.budget.given
            else "no rank was given for it"
            for name in chosen
            if len(of_layers[name].free) == 1 and of_layers[name].by_hand is None
        }
        allocation = self.candidates.quality(chosen, share or self.budget.share) if self.budget.given else None
        plan = make_plan(
            subject.survey,
            settings,
            subject.norm.name,
            choices,
            reasons,
            allocation,
            self.problems.memory(),
            self.problems.effective_ranks,
            self.unit,
        )
        return processes.agreed(with_solver_bytes(plan, subject.survey, subject.model, subject.registry))

    def without(self, refusals: Mapping[str, str]) -> Choice:
        """The same for fewer layers: those that could not be solved are left alone from then on.

        :param refusals: the reason for each of them.
        """
        if not refusals:
            return self
        problems = self.problems.without(refusals)
        return Choice(problems, self.budget, self.candidates.only(problems.subject.survey.layers), self.unit)


def choose(problems: Problems, meter: Meter | None) -> Plan:
    """Choose a decomposer and a rank for every layer.

    :param problems: the problems of the layers.
    :param meter: measures what networks cost, where the budget or a runtime asks for it.
    :raises BudgetError: where no ranks meet the budget.
    """
    choice = choices_of(problems, meter)
    budget, candidates = choice.budget, choice.candidates
    if meter is None or budget.share is None or not budget.is_measured:
        plan = choice.write(budget.choose(candidates))
        plan = plan if meter is None else processes.agreed(meter.predicted(plan))
    else:
        trial = meet(candidates, budget.share, lambda chosen: processes.agreed(list(meter.network(chains_of(chosen)))))
        costs = {name: Change(candidates.choices[name].dense.cost, each.cost) for name, each in trial.chosen.items()}
        plan = meter.written(choice.write(trial.chosen, trial.limit), costs, Change(*trial.whole))
    changed = [name for name, each in plan.layers.items() if each.rank]
    logger.info(
        "Plan: %d of %d layers become chains, %.3g of %.3g MACs and %.3g of %.3g parameters remain.",
        len(changed), len(plan.layers), *reversed(plan.costs["macs"]), *reversed(plan.costs["parameters"]),
    )  # fmt: skip
    return plan


def choices_of(problems: Problems, meter: Meter | None) -> Choice:
    """List the choices of every layer, with their errors, their costs, and what they cost the model.

    :param problems: the problems of the layers.
    :param meter: measures costs, where the budget is of measured ones.
    """
    subject = problems.subject
    settings, budget = subject.settings, budget_of(subject.settings, subject.registry)
    names = list(subject.survey.layers)
    weighed = weights_of(problems, names) if budget.given else Weighed()
    choices = _choices(problems, budget, meter)
    policy = subject.registry.find(RANK_POLICIES, settings.policy)
    insights = {}
    if policy.inspect and budget.given:
        free = [name for name, of_layer in choices.items() if of_layer.by_hand is None]
        insights = {name: policy.inspect(problems[name]) for name in free}
    whole = _whole(problems, budget, meter, choices)
    remark = subject.largest_left_alone()
    candidates = Candidates(choices, weighed.weights, policy, whole, insights, remark)
    return Choice(problems, budget, candidates, weighed.unit if weighed.weights else ALIKE)


def rank_by_hand(settings: Settings, *names: str) -> Rank | None:
    """The rank that the user gave a layer, or None.

    >>> rank_by_hand(Settings(ranks={"{re}conv": (8,)}), "layer1.conv2"), rank_by_hand(Settings(), "fc")
    ((8,), None)

    :param settings: what the user asked for.
    :param names: of the layer, all that the model knows it by.
    """
    ranks = settings.ranks.items()
    return next((rank for scope, rank in ranks if any(matches(name, scope) for name in names)), None)


def weights_of(problems: Problems, names: Sequence[str]) -> Weighed:
    """What errors at each layer are expected to cost the model, per squared relative error.

    :param problems: the problems of the layers.
    :param names: the layers.
    :return: nothing of layers on which the output does not depend; nothing at all where it cannot be known.
    """
    if not names:
        return Weighed()
    source, trials = problems.source, dict[str, Sequence[Trial]]()
    if source.tries:
        tried = problems.each("trial", "Solving trials", names, lambda group: [_try(problems, name) for name in group])
        trials = {name: found for name, found in tried.items() if found}
    weighed = source.weights(problems.subject, trials)
    weights = weighed.weights
    if not all(math.isfinite(value) for each in weights.values() for _, value in each):
        logger.warning("Gradients of the model's output are not finite: all layers are weighted alike.")
        return Weighed()
    # a layer that the output does not depend on at all would have no use for any rank
    used = {name: weights[name] for name in names if name in weights and weights[name][0][1] > 0}
    return Weighed(used, weighed.unit)


def _try(problems: Problems, name: str) -> Sequence[Trial]:
    subject = problems.subject
    try:
        return try_out(
            subject.survey.layers[name], subject.model.get_submodule(name), problems[name], problems.inputs(name)
        )
    except (torch.linalg.LinAlgError, ValueError) as error:
        logger.warning("Layer %s is not weighed: %s", name, error)
        return []


def _choices(problems: Problems, budget: Budget, meter: Meter | None) -> dict[str, Choices]:
    subject, settings = problems.subject, problems.subject.settings
    records = competitors(settings, subject.registry)
    measured = meter.measured if meter is not None and budget.is_measured else None

    def hand(name: str) -> Rank | None:
        return rank_by_hand(settings, name, *subject.survey.layers[name].aliases)

    def of_group(names: Sequence[str]) -> list[Choices]:
        curves: Sequence[Mapping[str, Sequence[Point]]] = [{}] * len(names)
        if budget.given and hand(names[0]) is None:
            curves = error_curves([problems[name] for name in names], records)
        return [of_layer(name, curve) for name, curve in zip(names, curves, strict=True)]

    def of_layer(name: str, curves: Mapping[str, Sequence[Point]]) -> Choices:
        layer, module, given = subject.survey.layers[name], subject.model.get_submodule(name), hand(name)
        pricing = Pricing(layer, module, budget.unit, measured, biases=_biases(problems, name))
        if given is not None:
            return by_hand(layer, given, pricing, records)
        return propose(layer.shape, curves, pricing, records)

    names = list(subject.survey.layers)
    choices = problems.each("propose", "Computing error curves", names, of_group, kind=hand)
    return choices if measured is None or not choices else smoothed(choices, subject.survey.layers, subject.model)


def _biases(problems: Problems, name: str) -> int:
    """How many biases a chain gets that its layer lacks: the correction of its output's mean needs them."""
    subject = problems.subject
    matched = subject.norm.weighted or (bool(problems.source.batches) and subject.settings.repair != "none")
    shape, has_one = subject.survey.layers[name].shape, bias_of(subject.model.get_submodule(name)) is not None
    return 0 if has_one or not matched or name in subject.inner else shape.groups * shape.out_channels


def _whole(problems: Problems, budget: Budget, meter: Meter | None, choices: Mapping[str, Choices]) -> float:
    """What the whole model costs, in the unit of the budget."""
    survey, unit = problems.subject.survey, budget.unit.name
    if meter is not None and meter.unit == unit:
        return processes.agreed(meter.original())
    totals = {"macs": survey.macs * survey.samples, "parameters": float(survey.parameters)}
    return totals.get(unit, sum(of_layer.dense.cost for of_layer in choices.values()))
