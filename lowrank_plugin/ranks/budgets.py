# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What kinds of budgets there are, and what each of them limits.

Nobody else asks for the name of a budget. A step asks ``budget_of(settings, registry)`` once and then looks at the
limits: exactly one of ``share``, ``error`` and ``drop`` is set, none of them where all ranks are given by hand::

    budget = budget_of(settings, registry)
    candidates = ...                        # priced in budget.unit
    chosen = budget.choose(candidates)      # predicted: by share, by error or by hand
    if budget.is_measured: ...              # a share of what the whole network measures: measured_budget.meet
    if budget.drop is not None: ...         # a drop of the measured quality: a search with a validation_fn

Where there are no settings yet, such as in a host that is given a section, ``needs_validation(section["budget"])``
tells whether a ``validation_fn`` is of use.

Another kind is one entry of :data:`KINDS`, the range of its limit in the schema of ``"budget"`` in
:mod:`lowrank_plugin.settings`, and the step that meets it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lowrank_hooks import CostModelRecord
from lowrank_plugin.plugins import COST_MODELS, Manager
from lowrank_plugin.ranks.allocation import Candidates, Chosen
from lowrank_plugin.settings import Settings


@dataclass(frozen=True)
class Budget:
    """What may remain of a network, or may be lost; at most one of the limits is set.

    :param unit: the cost that choices are compared by.
    :param share: of the whole network's cost, what may remain.
    :param error: the largest relative error of a layer.
    :param drop: by how much the network's measured quality may fall, in the units of the ``validation_fn``.
    """

    unit: CostModelRecord
    share: float | None = None
    error: float | None = None
    drop: float | None = None

    @property
    def given(self) -> bool:
        """Whether there is a budget at all; where there is none, all ranks are given by hand."""
        return not (self.share is self.error is self.drop is None)

    @property
    def is_measured(self) -> bool:
        """Whether the whole network is to be measured, not only the sum over its layers."""
        return self.share is not None and self.unit.measure is not None

    def choose(self, candidates: Candidates) -> Chosen:
        """The choices by prediction; a drop of quality is not predicted, for it only the ranks by hand are taken.

        :param candidates: what there is to choose from, priced in the unit.
        :raises BudgetError: where no choices leave so little.
        :raises PluginError: where the rank policy leaves out a layer.
        """
        if self.share is not None:
            return candidates.within_share(self.share)
        return candidates.by_hand() if self.error is None else candidates.within_error(self.error)


class BudgetKind(NamedTuple):
    """A budget that is no share of a cost.

    :param make: called with the cost model of MACs and the limit.
    :param needs_validation: whether networks are judged by a ``validation_fn`` to meet it.
    """

    make: Callable[[CostModelRecord, float], Budget]
    needs_validation: bool = False


KINDS: Mapping[str, BudgetKind] = {
    "error": BudgetKind(lambda macs, limit: Budget(macs, error=limit)),
    "accuracy_drop": BudgetKind(lambda macs, limit: Budget(macs, drop=limit), needs_validation=True),
}
"""Budgets that are no share of a cost, by the key that users write; choices are then compared by their MACs."""


def budget_of(settings: Settings, registry: Manager) -> Budget:
    """The budget that the settings give.

    >>> from lowrank_plugin.plugins import manager
    >>> budget_of(Settings(budget={"parameters": 0.5}), manager()).share
    0.5
    >>> budget_of(Settings(budget={"error": 0.1}), manager()).unit.name
    'macs'

    :param settings: what the user asked for.
    :param registry: where cost models are found.
    :raises ConfigurationError: where the budget is neither the name of a cost model nor a kind of its own.
    """
    macs = registry.find(COST_MODELS, "macs")
    if not settings.budget:
        return Budget(macs)
    ((name, limit),) = settings.budget.items()
    if name in KINDS:
        return KINDS[name].make(macs, limit)
    return Budget(registry.find(COST_MODELS, name), share=limit)


def needs_validation(budget: Mapping[str, float] | None) -> bool:
    """Whether networks are judged by a ``validation_fn`` to meet a budget.

    >>> needs_validation({"accuracy_drop": 0.01}), needs_validation({"macs": 0.5}), needs_validation(None)
    (True, False, False)

    :param budget: as users write it.
    """
    return any(name in KINDS and KINDS[name].needs_validation for name in budget or {})
