# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The unit of a budget, and how much of it may remain."""

from __future__ import annotations

from lowrank_hooks import CostModelRecord
from lowrank_plugin.plugins import COST_MODELS, manager
from lowrank_plugin.settings import Settings


def unit_of(settings: Settings) -> tuple[CostModelRecord, float | None]:
    """The cost model of the budget and what may remain; MACs and None where the budget is no cost or there is none."""
    unit, limit = next(iter(settings.budget.items())) if settings.budget else ("error", None)
    no_cost = unit in ("error", "accuracy_drop")
    return manager().find(COST_MODELS, "macs" if no_cost else unit), None if no_cost else limit
