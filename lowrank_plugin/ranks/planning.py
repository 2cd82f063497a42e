# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""From choices to the plan that tells of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import nn

from lowrank_hooks import NORMS
from lowrank_plugin.layers.survey import Survey
from lowrank_plugin.plugins import DECOMPOSERS, Manager
from lowrank_plugin.ranks.plan import Change, Plan, PlannedLayer
from lowrank_plugin.ranks.proposals import DENSE, Proposal
from lowrank_plugin.settings import Settings
from lowrank_plugin.statistics.problems import stated_bytes


def make_plan(
    surveyed: Survey,
    settings: Settings,
    norm: str,
    choices: Mapping[str, tuple[Proposal, Proposal]],
    reasons: Mapping[str, str],
    allocation: Mapping[str, float] | None,
    memory: Mapping[str, int],
    effective_ranks: Mapping[str, float],
    unit: str | None = None,
) -> Plan:
    """Write down the choices.

    :param surveyed: the survey of the model.
    :param settings: what the user asked for.
    :param norm: the norm of the errors.
    :param choices: for each layer the dense choice and the one taken.
    :param reasons: why layers are kept dense, where the budget is not the reason.
    :param allocation: how good the choices under the budget are; None where there is no budget.
    :param memory: see :class:`lowrank_plugin.ranks.plan.Plan`.
    :param effective_ranks: in how many directions each layer's input patches vary, where that is known.
    :param unit: what the losses of ``allocation`` are in, where that is known.
    """
    layers = {}
    for name, (dense, chosen) in choices.items():
        stays = chosen.decomposer == DENSE
        layers[name] = PlannedLayer(
            chosen.decomposer,
            chosen.rank,
            None if math.isnan(chosen.error) else chosen.error,
            {
                "macs": Change(dense.macs / surveyed.samples, chosen.macs / surveyed.samples),
                "parameters": Change(int(dense.parameters), int(chosen.parameters)),
            },
            effective_ranks.get(name),
            reasons.get(name, "the budget is better spent elsewhere") if stays else None,
        )
    before = {"macs": surveyed.macs, "parameters": surveyed.parameters}
    whole = {unit: Change(cost, cost - _saved(unit, layers.values())) for unit, cost in before.items()}
    unit = None if allocation is None else unit
    return Plan(settings, norm, whole, layers, dict(surveyed.refusals), allocation, dict(memory), unit=unit)


def _saved(unit: str, layers: Iterable[PlannedLayer]) -> float:
    return sum(layer.costs[unit].before - layer.costs[unit].after for layer in layers)


def with_solver_bytes(plan: Plan, surveyed: Survey, model: nn.Module, registry: Manager) -> Plan:
    """A plan with the peak extra memory of each fit, where its decomposer states one.

    :param plan: the plan.
    :param surveyed: the survey of the model.
    :param model: the network.
    :param registry: where decomposers are found.
    """
    stated = {}
    for name, (decomposer, rank) in plan.ranks(surveyed).items():
        record, kernel = registry.find(DECOMPOSERS, decomposer), surveyed.layers[name].adapter.kernel
        stated[name] = stated_bytes(record.decomposer, kernel(model.get_submodule(name)), rank, NORMS[plan.norm])
    return plan.with_solver_bytes(stated)
