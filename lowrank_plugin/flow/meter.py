# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A cost that is measured on one network: of chains before they are solved, and of the network in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from lowrank_hooks import MeasuredCost, StepEvent
from lowrank_plugin.chains.record import attach
from lowrank_plugin.costs.counted import Chain
from lowrank_plugin.costs.stand_ins import cost_context, random_network
from lowrank_plugin.flow.compressing import Compressed
from lowrank_plugin.flow.subject import Subject
from lowrank_plugin.plugins import COST_MODELS, DECOMPOSERS
from lowrank_plugin.ranks.plan import Change, Plan


def meter_of(subject: Subject) -> Meter | None:
    """What measures the budget's cost, or latency where a runtime is given; None where nothing is to be measured.

    :param subject: the model.
    :raises ConfigurationError: where the runtime cannot be used.
    """
    known, settings = subject.registry.registered(COST_MODELS), subject.settings
    unit = known.get(next(iter(settings.budget or {"": 0})))
    if unit is None or unit.record.measure is None:
        unit = None if settings.runtime is None else known["latency"]
    if unit is None or unit.record.measure is None:
        return None
    context = cost_context(subject.model, subject.example, subject.survey.layers, settings.runtime or {})
    return Meter(unit.record.name, unit.record.measure(context), subject)


class Meter:
    """Measures a network and its layers.

    :param unit: the name of the cost.
    :param measured: what measures it.
    :param subject: the model, as long as it is not changed.
    """

    def __init__(self, unit: str, measured: MeasuredCost, subject: Subject) -> None:
        self.unit, self.measured = unit, measured
        self._subject, self._trials = subject, 0

    def original(self) -> float:
        """What the network costs as it is."""
        return self._compare([self._subject.model])[0]

    def network(self, chains: Mapping[str, Chain]) -> Change:
        """What the network costs before and after, its chains with random weights.

        :param chains: the sizes of the chains by layer name; layers that stay dense are left out.
        """
        self._trials += 1
        subject = self._subject
        found = self._compare([subject.model, random_network(subject.model, subject.survey.layers, chains)])
        subject.steps.observe(StepEvent("measure", self._trials))
        return Change(*found)

    def predicted(self, plan: Plan) -> Plan:
        """A plan with what its layers and the whole network cost before and after.

        :param plan: the plan.
        """
        chains = {}
        for name, (decomposer, rank) in plan.ranks(self._subject.survey).items():
            record = self._subject.registry.find(DECOMPOSERS, decomposer)
            chains[name] = tuple(record.decomposer.structure(self._subject.survey.layers[name].shape, rank))
        costs = {name: Change(*self.measured.layer(name, [(), chains.get(name, ())])) for name in plan.layers}
        return self.written(plan, costs, self.network(chains))

    def written(self, plan: Plan, layers: Mapping[str, Change], whole: Change) -> Plan:
        """A plan with costs under the name of the unit.

        :param plan: the plan.
        :param layers: the cost of each layer.
        :param whole: the cost of the whole network.
        """
        return plan.with_costs(self.unit, layers, whole, self.measured.facts())

    def timed(self, compressed: Compressed, plan: Plan) -> nn.Module:
        """Write into the record of a compressed network what it costs, beside what the plan predicted.

        :param compressed: the network; its record is replaced.
        :param plan: the plan that was followed.
        """
        # changed in place, the model no longer tells what it cost before; the plan may
        inplace = compressed.model is self._subject.model
        costs = self._compare([compressed.model] if inplace else [self._subject.model, compressed.model])
        attach(compressed.model, compressed.record.with_measured(plan, self.unit, costs))
        return compressed.model

    def _compare(self, networks: Sequence[nn.Module]) -> list[float]:
        return [float(cost) for cost in self.measured.networks(networks)]
