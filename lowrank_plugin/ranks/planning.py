# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The plan: one choice for every layer, as a JSON value that users may read, save and edit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from lowrank_hooks import Rank
from lowrank_plugin.errors import PlanError
from lowrank_plugin.layers.survey import Survey
from lowrank_plugin.plugins import DECOMPOSERS, manager
from lowrank_plugin.ranks.proposals import DENSE, Proposal
from lowrank_plugin.settings import Settings
from lowrank_plugin.statistics.problems import stated_bytes
from lowrank_plugin.support.messages import suggestion
from lowrank_plugin.support.validation import validate

FORMAT = 1

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["format", "settings", "norm", "layers"],
    "properties": {
        "format": {"const": FORMAT, "description": f"{FORMAT}, the format this version reads"},
        "settings": {"type": "object"},
        "norm": {"enum": ["covariance", "two-sided", "frobenius"]},
        "layers": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["decomposer"],
                "properties": {
                    "decomposer": {"type": "string"},
                    "rank": {
                        "type": "array",
                        "items": {"type": "integer", "minimum": 1},
                        "description": "a list of whole numbers from 1",
                    },
                },
            },
        },
    },
}


def make_plan(
    surveyed: Survey,
    settings: Settings,
    norm: str,
    choices: Mapping[str, tuple[Proposal, Proposal]],
    reasons: Mapping[str, str],
    allocation: Mapping[str, float] | None,
    memory: Mapping[str, int],
    effective_ranks: Mapping[str, float],
) -> dict[str, Any]:
    """Write down the choices.

    :param surveyed: the survey of the model.
    :param settings: what the user asked for.
    :param norm: the norm of the errors.
    :param choices: for each layer the dense choice and the one taken.
    :param reasons: why layers are kept dense, where the budget is not the reason.
    :param allocation: how good the choices under the budget are; None where there is no budget.
    :param memory: ``peak``, bytes that collecting statistics was predicted to need beyond running the model, and
        ``passes``, how many times the data was run over for it; empty where nothing was collected.
    :param effective_ranks: in how many directions each layer's input patches vary, where that is known.
    :return: a JSON value. ``layers`` holds for each layer its decomposer, rank, predicted relative error, and MACs and
        parameters before and after, for one sample; ``skipped`` says why other layers are left alone. MACs and
        parameters of the whole model, before and as predicted, stand under ``model``. ``allocation`` holds, for the
        layers that share the budget, the ``predicted_loss``, the ``lower_bound`` that no other choice of their options
        under the budget can be below, and the ``gap`` between the two; in nats where gradients are known.
    """
    layers = {name: _entry(dense, chosen, surveyed.samples) for name, (dense, chosen) in choices.items()}
    for name, entry in layers.items():
        entry["effective_rank"] = effective_ranks.get(name)
        if entry["decomposer"] == DENSE:
            entry["reason"] = reasons.get(name, "the budget is better spent elsewhere")
    saved = {key: sum(entry[key][0] - entry[key][1] for entry in layers.values()) for key in ("macs", "parameters")}
    return {
        "format": FORMAT,
        "settings": settings.to_mapping(),
        "norm": norm,
        "model": {
            "macs": [surveyed.macs, surveyed.macs - saved["macs"]],
            "parameters": [surveyed.parameters, surveyed.parameters - saved["parameters"]],
        },
        "allocation": None if allocation is None else dict(allocation),
        "memory": dict(memory),
        "layers": layers,
        "skipped": dict(surveyed.refusals),
    }


def _entry(dense: Proposal, chosen: Proposal, samples: int) -> dict[str, Any]:
    return {
        "decomposer": chosen.decomposer,
        "rank": list(chosen.rank),
        "error": None if math.isnan(chosen.error) else chosen.error,
        "macs": [dense.macs / samples, chosen.macs / samples],
        "parameters": [int(dense.parameters), int(chosen.parameters)],
    }


def with_solver_bytes(plan: dict[str, Any], surveyed: Survey, model: nn.Module) -> dict[str, Any]:
    """A plan with the peak extra memory of each fit under ``solver_bytes``, where its decomposer states one.

    :param plan: the plan.
    :param surveyed: the survey of the model.
    :param model: the network.
    """
    layers = dict(plan["layers"])
    for name, (decomposer, rank) in chosen_ranks(plan, surveyed).items():
        record, kernel = manager().find(DECOMPOSERS, decomposer), surveyed.layers[name].adapter.kernel
        stated = stated_bytes(record.decomposer, kernel(model.get_submodule(name)), rank, plan["norm"])
        layers[name] = {**layers[name], "solver_bytes": stated}
    return {**plan, "layers": layers}


def chosen_ranks(plan: Mapping[str, Any], surveyed: Survey) -> dict[str, tuple[str, Rank]]:
    """The layers that a plan compresses, checked against the model.

    :param plan: a plan, edited or not.
    :param surveyed: the survey of the model it is to be applied to.
    :return: decomposer and rank by layer name.
    :raises PlanError: where the plan names a layer that cannot be compressed or lacks a rank.
    """
    ranks: dict[str, tuple[str, Rank]] = {}
    for name, entry in plan["layers"].items():
        if entry["decomposer"] == DENSE:
            continue
        if name not in surveyed.layers:
            reason = surveyed.refusals.get(name)
            msg = f"The plan compresses {name!r}, but " + (
                f"that layer cannot be: {reason}."
                if reason
                else f"the model has no such layer. {suggestion(name, surveyed.layers)}"
            )
            raise PlanError(msg)
        if not entry.get("rank"):
            msg = f"The plan gives {name!r} the decomposer {entry['decomposer']!r} but no rank; add a list of integers."
            raise PlanError(msg)
        ranks[name] = (entry["decomposer"], tuple(entry["rank"]))
    return ranks


def settings_of(plan: Mapping[str, Any]) -> Settings:
    """The settings a plan was made with, its norm included.

    :param plan: a plan.
    :raises PlanError: where it is malformed.
    """
    try:
        validate(plan, _SCHEMA, "the plan")
        return Settings.from_mapping({**plan["settings"], "norm": plan["norm"]})
    except ValueError as error:
        raise PlanError(str(error)) from error
