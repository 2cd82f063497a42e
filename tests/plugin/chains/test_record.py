# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Records: what was written is read, a model carries it as JSON, and its table says the units."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from data import make_format1
from torch import nn

from lowrank_plugin.chains.record import RECORD, Record, attach, record_of
from lowrank_plugin.chains.report import Report
from lowrank_plugin.errors import LowRankError, PlanError
from lowrank_plugin.ranks.plan import Change, Plan

OLD = Path(make_format1.__file__).parent / "format1"
STATES = sorted((OLD / "states").glob("*.json"))


def old(name: str) -> dict:
    return json.loads((OLD / "states" / f"{name}.json").read_text())["record"]


@pytest.mark.parametrize("path", STATES, ids=lambda path: path.stem)
def test_what_was_written_is_read_and_written_again(path: Path) -> None:
    record = json.loads(path.read_text())["record"]
    assert Record.from_json(record).to_json() == record


def test_a_model_carries_its_record_as_json() -> None:
    model, record = nn.Linear(2, 2), Record.from_json(old("macs"))
    attach(model, record)
    assert json.loads(json.dumps(getattr(model, RECORD))) == old("macs")
    assert record_of(model) == record == record_of(copy.deepcopy(model))
    with pytest.raises(LowRankError, match="carries no record"):
        record_of(nn.Linear(2, 2))


def test_a_measurement_stands_beside_what_was_planned() -> None:
    plan = Plan.from_json(json.loads((OLD / "plans" / "timed.json").read_text()))
    record = Record.from_json(old("timed"))
    assert record.measured is not None
    assert (record.measured.unit, record.measured.planned) == ("latency", plan.costs["latency"])
    again = record.with_measured(plan, "latency", [8.0, 2.0])
    assert again.to_json()["model"]["latency"] == [8.0, 2.0]
    assert again.to_json()["measured_on"] == dict(plan.measured_on or {})
    for name, entry in again.to_json()["layers"].items():
        assert entry["predicted_latency"] == list(plan.layers[name].costs["latency"])
    # the original is gone: the plan tells what it cost
    inplace = record.with_measured(plan, "latency", [2.0])
    assert inplace.measured is not None
    assert (inplace.measured.before, inplace.measured.after) == (plan.costs["latency"].before, 2.0)
    # the plan knows nothing of it
    unplanned = record.with_measured(
        Plan.from_json(json.loads((OLD / "plans" / "macs.json").read_text())), "ticks", [2.0]
    )
    written = unplanned.to_json()
    assert (written["model"]["ticks"], written["model"]["predicted_ticks"], written["measured_on"]) == (
        [None, 2.0],
        None,
        None,
    )
    assert Record.from_json(written) == unplanned
    assert "Measured ticks: 2." in Report(unplanned).to_str()


def test_the_table_says_the_units() -> None:
    text = Report(Record.from_json(old("timed"))).to_str()
    assert "MACs per sample" in text
    assert "latency in milliseconds" in text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stages", [{"out": 3}], r"\['layers'\]\['second'\]\['stages'\]"),
        ("macs", [1.0], r"\['macs'\]: expected a list of two numbers"),
        ("bias", "yes", r"\['bias'\]"),
    ],
)
def test_mistakes_are_named(key: str, value: object, message: str) -> None:
    record = old("svd")
    record["layers"]["second"][key] = value
    with pytest.raises(PlanError, match=message):
        Record.from_json(record)


def test_chains_are_told_from_layers_that_stayed() -> None:
    record = Record.from_json(old("macs"))
    assert record.chains
    assert all(layer.stages for layer in record.chains.values())
    assert all(
        layer.costs["macs"] == Change(layer.costs["macs"].before, layer.costs["macs"].before)
        for layer in record.layers.values()
        if not layer.is_chain
    )
