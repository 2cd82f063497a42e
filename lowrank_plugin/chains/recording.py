# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""From what was planned and fitted to the record that tells of it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lowrank_plugin.chains.fitting import Fitted
from lowrank_plugin.chains.record import Record, RecordedLayer
from lowrank_plugin.costs.counted import Chain, macs, parameters, sizes
from lowrank_plugin.layers.holders import bias_of, parameters_of
from lowrank_plugin.layers.prepared import PlainAdapter
from lowrank_plugin.layers.survey import Layer, Survey
from lowrank_plugin.ranks.plan import Change, Plan, PlannedLayer
from lowrank_plugin.ranks.proposals import DENSE


def make_record(
    plan: Plan,
    surveyed: Survey,
    fitted: Mapping[str, Fitted],
    templates: Mapping[str, nn.Module],
    after: nn.Module,
    distilled: Mapping[str, tuple[float, float]] | None = None,
) -> Record:
    """Write down what was done.

    :param plan: the plan that was followed.
    :param surveyed: the survey, with the refusals met on the way.
    :param fitted: what was put in place.
    :param templates: the layers of the survey, as they were.
    :param after: the model as it is.
    :param distilled: errors of the blocks that were distilled, before and after.
    """
    replaced, kept = {}, {}
    for name, planned in plan.layers.items():
        if name in fitted:
            costs = _costs(surveyed, name, templates[name], fitted[name].factorization.shapes)
            chain = after.get_submodule(name)
            replaced[name] = _replaced(planned, surveyed.layers[name], fitted[name], templates[name], chain, costs)
        elif name in surveyed.layers:
            kept[name] = _kept(planned, surveyed.layers[name], _costs(surveyed, name, templates[name], ()))
    saved = sum(layer.costs["macs"].before - layer.costs["macs"].after for layer in replaced.values())
    whole = {
        "macs": Change(surveyed.macs, surveyed.macs - saved),
        "parameters": Change(surveyed.parameters, parameters_of(after)),
    }
    return Record(
        plan.norm,
        plan.settings,
        whole,
        {**replaced, **kept},
        dict(surveyed.refusals),
        plan.allocation,
        plan.accuracy,
        dict(distilled or {}),
        unit=plan.unit,
    )


def _replaced(
    planned: PlannedLayer,
    layer: Layer,
    fitted: Fitted,
    template: nn.Module,
    chain: nn.Module,
    costs: Mapping[str, Change],
) -> RecordedLayer:
    """A layer that a chain took the place of; a bias that the layer had not counts."""
    bias = bias_of(list(chain.children())[-1])
    added = bias.numel() if bias is not None and bias_of(template) is None else 0
    weights = costs["parameters"]
    return RecordedLayer(
        planned.decomposer,
        planned.rank,
        layer.kind,
        fitted.factorization.shapes,
        bias is not None,
        {**costs, "parameters": Change(weights.before, weights.after + added)},
        fitted.solution.status.value,
        planned.error,
        fitted.output_error,
        planned.effective_rank,
        planned.solver_bytes,
        fitted.seconds,
        dict(fitted.solution.statistics),
        plain=layer.adapter.plain.to_json() if isinstance(layer.adapter, PlainAdapter) else None,
    )


def _kept(planned: PlannedLayer, layer: Layer, costs: Mapping[str, Change]) -> RecordedLayer:
    """A layer that stayed."""
    return RecordedLayer(
        DENSE,
        (),
        layer.kind,
        (),
        False,
        costs,
        f"Kept dense: {planned.reason or 'the plan says so'}.",
        predicted_error=planned.error,
        effective_rank=planned.effective_rank,
    )


def _costs(surveyed: Survey, name: str, module: nn.Module, chain: Chain) -> dict[str, Change]:
    """MACs for one sample and weights, before and after; an empty chain is the layer itself."""
    dense, small = (sizes(surveyed.layers[name], module, each) for each in ((), chain))
    return {
        "macs": Change(macs(*dense) / surveyed.samples, macs(*small) / surveyed.samples),
        "parameters": Change(int(parameters(*dense)), int(parameters(*small))),
    }
