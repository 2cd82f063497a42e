# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Plans: what was written is read, what was edited too, and a mistake is named with its entry."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from data import make_format1

from lowrank_plugin.errors import PlanError
from lowrank_plugin.plugins import COST_MODELS, manager
from lowrank_plugin.ranks.budgets import KINDS, budget_of
from lowrank_plugin.ranks.plan import Accuracy, Change, Evaluation, Plan, PlannedLayer
from lowrank_plugin.settings import Settings

PLANS = sorted((Path(make_format1.__file__).parent / "format1" / "plans").glob("*.json"))


def small() -> dict[str, Any]:
    """The least that a user can write."""
    return {
        "format": 1,
        "settings": {"ranks": {"conv": 8}},
        "norm": "frobenius",
        "layers": {"conv": {"decomposer": "svd", "rank": [8]}},
    }


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_what_was_written_is_read_and_written_again(path: Path) -> None:
    text = path.read_text()
    again = Plan.from_json(json.loads(text)).to_json()
    assert again == json.loads(text)
    # the order of the keys too, in which people read them
    assert json.dumps(again) == json.dumps(json.loads(text))
    assert Plan.from_json(again) == Plan.from_json(json.loads(text))


def test_a_plan_needs_only_decomposers_and_ranks() -> None:
    made = Plan.from_json(small())
    assert made.layers == {"conv": PlannedLayer("svd", (8,))}
    assert made.settings.ranks == {"conv": (8,)}
    assert (made.settings.norm, made.settings_to_follow.norm) == (None, "frobenius")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("format",), 2, r"2 for the plan\['format'\]: expected 1"),
        (("norm",), "l2", r"\['norm'\]"),
        (("layers", "conv", "rank"), 8, r"8 for the plan\['layers'\]\['conv'\]\['rank'\]: expected a list of whole"),
        (("layers", "conv", "macs"), [1.0], r"\['conv'\]\['macs'\]: expected a list of two numbers, before and after"),
        (("layers", "conv"), {"rank": [8]}, "'decomposer' is a required property"),
        (("settings", "seed"), -1, r"\['seed'\]: expected a whole number from 0"),
        (("settings",), {}, "Nothing to do"),
        (("accuracy",), {"original": 1.0}, "required property"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_mistakes_are_named(place: tuple[str, ...], value: Any, message: str) -> None:
    plan = inner = copy.deepcopy(small())
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(PlanError, match=message):
        Plan.from_json(plan)


def test_measured_costs_stand_beside_the_counted_ones() -> None:
    made = Plan.from_json(small()).with_costs("ticks", {"conv": Change(4, 1)}, Change(9, 6), {"clock": "sun"})
    written = made.to_json()
    assert (written["layers"]["conv"]["ticks"], written["model"], written["measured_on"]) == (
        [4, 1],
        {"ticks": [9, 6]},
        {"clock": "sun"},
    )
    assert Plan.from_json(written) == made


def test_the_course_of_a_search_is_read_again() -> None:
    tried = Evaluation(0.5, 0.75, 0.25)
    for chosen in (tried, None):
        made = Plan.from_json(small()).with_accuracy(Accuracy(1.0, 0.25, (tried,), chosen))
        assert Plan.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_reasons_and_memory_are_of_the_layers_concerned() -> None:
    made = Plan.from_json({**small(), "layers": {**small()["layers"], "fc": {"decomposer": "dense"}}})
    layers = made.with_reasons("because").with_solver_bytes({"conv": 5}).to_json()["layers"]
    assert (layers["fc"]["reason"], layers["conv"]["solver_bytes"]) == ("because", 5)
    assert ("reason" in layers["conv"], "solver_bytes" in layers["fc"]) == (False, False)


@pytest.mark.parametrize(
    ("section", "unit", "limits"),
    [
        ({"macs": 0.5}, "macs", (0.5, None, None)),
        ({"latency": 0.5}, "latency", (0.5, None, None)),
        ({"error": 0.1}, "macs", (None, 0.1, None)),
        ({"accuracy_drop": 0.0}, "macs", (None, None, 0.0)),
        (None, "macs", (None, None, None)),
    ],
)
def test_a_budget_sets_one_limit(section: dict[str, float] | None, unit: str, limits: tuple[float | None, ...]) -> None:
    budget = budget_of(Settings(budget=section, ranks={"conv": (8,)}), manager())
    assert (budget.unit.name, budget.share, budget.error, budget.drop) == (unit, *limits)
    assert budget.given is (section is not None)
    assert budget.is_measured is (unit == "latency")


def test_kinds_of_budgets_are_no_cost_models() -> None:
    assert not KINDS.keys() & manager().registered(COST_MODELS).keys()
