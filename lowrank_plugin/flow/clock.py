# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A cost that is measured on one network: of chains before they are solved, and of the network in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lowrank_hooks import CostModelRecord, StepEvent
from lowrank_plugin.chains.record import RECORD, with_measured
from lowrank_plugin.costs.counted import Chain
from lowrank_plugin.costs.stand_ins import cost_context, random_network
from lowrank_plugin.layers.survey import Survey
from lowrank_plugin.plugins import COST_MODELS, DECOMPOSERS, manager
from lowrank_plugin.ranks.planning import chosen_ranks
from lowrank_plugin.settings import Settings


def make_clock(model: nn.Module, example: Any, surveyed: Survey, settings: Settings) -> Clock | None:
    """What measures the budget's cost, or latency where a runtime is given; None where nothing is to be measured.

    :param model: the network.
    :param example: the input that it is measured with.
    :param surveyed: the survey of the model.
    :param settings: what the user asked for.
    :raises ConfigurationError: where the runtime cannot be used.
    """
    known = manager().registered(COST_MODELS)
    unit = known.get(next(iter(settings.budget or {"": 0})))
    if unit is not None and unit.record.measure is not None:
        return Clock(unit.record, model, example, surveyed, settings)
    return None if settings.runtime is None else Clock(known["latency"].record, model, example, surveyed, settings)


class Clock:
    """Measures a network and its layers.

    :param unit: a cost model that is measured.
    :param model: the network, as long as it is not changed.
    :param example: the input that it is measured with.
    :param surveyed: the survey of the model.
    :param settings: for the runtime.
    :raises ConfigurationError: where that runtime cannot be used.
    """

    def __init__(self, unit: CostModelRecord, model: nn.Module, example: Any, surveyed: Survey, settings: Settings):
        self.unit = unit.name
        self._model, self._survey, self._trials = model, surveyed, 0
        context = cost_context(model, example, surveyed.layers, settings.runtime or {})
        self.measured = unit.measure(context)  # type: ignore[misc]

    def original(self) -> float:
        """What the network costs as it is."""
        return self._compare([self._model])[0]

    def network(self, chains: Mapping[str, Chain]) -> list[float]:
        """What the network costs before and after, its chains with random weights.

        :param chains: the sizes of the chains by layer name; layers that stay dense are left out.
        """
        self._trials += 1
        found = self._compare([self._model, random_network(self._model, self._survey.layers, chains)])
        manager().hook.lowrank_step(event=StepEvent("measure", self._trials))
        return found

    def predicted(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """A plan with what its layers and the whole network cost before and after.

        :param plan: the plan.
        """
        chains = {}
        for name, (decomposer, rank) in chosen_ranks(plan, self._survey).items():
            record = manager().find(DECOMPOSERS, decomposer)
            chains[name] = tuple(record.decomposer.structure(self._survey.layers[name].shape, rank))
        costs = {name: list(self.measured.layer(name, [(), chains.get(name, ())])) for name in plan["layers"]}
        return self.written(plan, costs, self.network(chains))

    def timed(self, compressed: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
        """Write into the record of a compressed network what it costs, beside what the plan predicted.

        :param compressed: the network with its record; the record is replaced.
        :param plan: the plan that was followed.
        """
        # changed in place, the model no longer tells what it cost before; the plan may
        inplace = compressed is self._model
        costs = self._compare([compressed] if inplace else [self._model, compressed])
        record = getattr(compressed, RECORD)
        setattr(compressed, RECORD, with_measured(record, plan, self.unit, costs))
        return compressed

    def written(self, plan: Mapping[str, Any], layers: Mapping[str, list[float]], whole: list[float]) -> dict[str, Any]:
        """A plan with costs under the name of the unit.

        :param plan: the plan.
        :param layers: cost before and after by layer name.
        :param whole: cost of the whole network before and after.
        """
        return {
            **plan,
            "measured_on": dict(self.measured.facts()),
            "model": {**plan["model"], self.unit: whole},
            "layers": {name: {**entry, self.unit: layers[name]} for name, entry in plan["layers"].items()},
        }

    def _compare(self, networks: Sequence[nn.Module]) -> list[float]:
        return [float(cost) for cost in self.measured.networks(networks)]
