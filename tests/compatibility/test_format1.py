# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Files of version 0.1.0 still mean what they meant, and files of this version have their form."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from data import make_format1
from data.forms import LATER, contents, form_of_file
from data.make_format1 import SECTIONS, STATISTICS, Small, batches, images, network, outputs
from safetensors.torch import load_file
from torch import nn

import lowrank_plugin
from lowrank_plugin import Statistics
from lowrank_plugin.costs import stopwatch
from lowrank_plugin.settings import SCHEMA, Settings

OLD = Path(make_format1.__file__).parent / "format1"
STATES = sorted(path.stem for path in (OLD / "states").glob("*.json"))
FILES = sorted(str(path.relative_to(OLD)) for path in OLD.rglob("*") if path.suffix in (".json", ".safetensors"))
FILES = [name for name in FILES if not name.startswith(("nncf", "lowrank"))]
MEMORY = ("memory", "solver_bytes")
"""Keys of a plan that state what it takes to solve it; they change as solvers do."""


def read(name: str, folder: Path = OLD) -> Any:
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What this version writes of the same network."""
    folder = tmp_path_factory.mktemp("now")
    shutil.copy(OLD / "network.safetensors", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopwatch, "NETWORKS_SECONDS", 0.05)
        patch.setenv("XDG_CACHE_HOME", "")  # put back afterwards
        make_format1.make(folder)
        yield folder


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Equal, numbers but for rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
            assert_same(mine, theirs, f"{where}/{index}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-9), where
    else:
        assert found == expected, where


def assert_same_tensors(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def decisions(value: Any) -> Any:
    """A plan without what is said of memory, and without keys that came later."""
    if isinstance(value, dict):
        return {key: decisions(each) for key, each in value.items() if key not in (*MEMORY, *LATER)}
    return value


def restored(name: str, folder: Path = OLD) -> nn.Module:
    """A network that an old state and old weights give."""
    made = Small().eval()
    made = lowrank_plugin.restore(made, read(f"states/{name}.json"))
    made.load_state_dict(load_file(folder / "states" / f"{name}.safetensors"))
    return made


def test_every_kind_of_chain_and_budget_is_among_the_files():
    records = [read(f"states/{name}.json")["record"] for name in STATES]
    used = {entry["decomposer"] for record in records for entry in record["layers"].values()}
    assert used == {*make_format1.RANKS, "dense"}
    assert {*SECTIONS, *STATISTICS} == {path.stem for path in (OLD / "plans").iterdir()}
    assert {next(iter(record["settings"]["budget"] or {}), None) for record in records} == {
        "macs", "parameters", "error", "accuracy_drop", None,
    }  # fmt: skip
    kinds = {type(each.patches).__name__ for each in Statistics.load(OLD / "statistics.safetensors").layers.values()}
    assert kinds == {"Autocorrelation", "Moments", "Vectors"}


@pytest.mark.parametrize("name", STATES)
def test_states_are_restored_bit_for_bit(name):
    state, small = read(f"states/{name}.json"), restored(name)
    assert_same_tensors(small.state_dict(), load_file(OLD / "states" / f"{name}.safetensors"))
    again = lowrank_plugin.get_state(small)
    assert {**again, "versions": None} == {**state, "versions": None}
    table = lowrank_plugin.report(small)
    assert table.to_dict() == state["record"]
    lines = table.to_str().splitlines()
    for layer, entry in state["record"]["layers"].items():
        rank = "x".join(map(str, entry["rank"]))
        assert any({layer, entry["decomposer"], rank} <= {*line.split(), ""} for line in lines), layer
    expected = load_file(OLD / "states" / f"{name}.outputs.safetensors")["outputs"]
    assert torch.equal(outputs(small, images(OLD)), expected)


@pytest.mark.parametrize("name", SECTIONS)
def test_plans_still_give_the_network_they_gave(name, monkeypatch, tmp_path):
    monkeypatch.setattr(stopwatch, "NETWORKS_SECONDS", 0.05)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small, expected = lowrank_plugin.apply(network(OLD), read(f"plans/{name}.json"), batches(OLD)), restored(name)
    assert {key: each.shape for key, each in small.state_dict().items()} == {
        key: each.shape for key, each in expected.state_dict().items()
    }
    # factors are unique but for signs and rotations, what they multiply out to is
    found, dense = (lowrank_plugin.to_dense(each).state_dict() for each in (small, expected))
    torch.testing.assert_close(found, dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*SECTIONS, *STATISTICS])
def test_the_same_plans_are_made(now, name):
    found, expected = (decisions(read(f"plans/{name}.json", folder)) for folder in (now, OLD))
    if name == "timed":
        times = [*found["layers"].values(), *expected["layers"].values(), found["model"], expected["model"]]
        assert all(min(each.pop("latency")) > 0 for each in times)
        assert found.pop("measured_on").keys() == expected.pop("measured_on").keys()
    assert_same(found, expected)


def test_statistics_are_read_bit_for_bit(tmp_path):
    Statistics.load(OLD / "statistics.safetensors").save(tmp_path / "again.safetensors")
    found, expected = contents(tmp_path / "again.safetensors"), contents(OLD / "statistics.safetensors")
    assert found[0] == expected[0]
    assert_same_tensors(found[1], expected[1])


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_give_the_plan_they_gave(name):
    seen = Statistics.load(OLD / "statistics.safetensors")
    made = lowrank_plugin.plan(network(OLD), statistics=seen, rank_multiple=1, **STATISTICS[name])
    assert_same(decisions(made), decisions(read(f"plans/{name}.json")))


def test_a_distillation_goes_on_from_its_checkpoint(tmp_path):
    shutil.copy(OLD / "checkpoint.safetensors", tmp_path)
    notes, kept = contents(OLD / "checkpoint.safetensors")
    done = notes["lowrank_distillation"]["blocks"]
    assert list(done) == ["first"]
    small = make_format1.distilled(OLD, tmp_path / "checkpoint.safetensors")
    errors = lowrank_plugin.report(small).to_dict()["distilled"]
    assert errors["first"] == done["first"]
    assert_same(errors, read("distilled.json"))
    found = small.state_dict()
    for name, value in kept.items():
        assert torch.equal(found[name], value) == name.startswith("first."), name
    torch.testing.assert_close(dict(found), load_file(OLD / "distilled.safetensors"), rtol=1e-4, atol=1e-5)


def test_settings_keep_their_keys_and_their_meaning():
    section, written = read("settings.json")
    assert section.keys() == written.keys() == SCHEMA["properties"].keys() - {"output"}
    defaults = Settings.from_mapping({"budget": {"macs": 0.5}}).to_mapping()
    assert all(written[key] != defaults[key] for key in written)
    assert Settings.from_mapping(section).to_mapping() == written
    assert Settings.from_mapping(written) == Settings.from_mapping(section)
    for name in STATES:
        settings = read(f"states/{name}.json")["record"]["settings"]
        assert Settings.from_mapping(settings).to_mapping() == settings


def test_measured_times_are_read(now, tmp_path, monkeypatch):
    (here,), (old,) = ((folder / "lowrank" / "latency").glob("*.json") for folder in (now, OLD))
    stored, facts = json.loads(old.read_text()), json.loads(here.read_text())["facts"]
    assert stored["facts"].keys() == facts.keys()
    # a machine of that name has measured
    cache = tmp_path / "lowrank" / "latency"
    cache.mkdir(parents=True)
    (cache / here.name).write_text(json.dumps({**stored, "facts": facts}))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(stopwatch, "NETWORKS_SECONDS", 0.05)
    made = lowrank_plugin.plan(network(OLD), batches(OLD), rank_multiple=1, **SECTIONS["timed"])
    for name, entry in read("plans/timed.json")["layers"].items():
        assert made["layers"][name]["latency"] == entry["latency"]
    assert json.loads((cache / here.name).read_text())["milliseconds"] == stored["milliseconds"]


@pytest.mark.parametrize("name", FILES)
def test_files_keep_their_form(now, name):
    assert form_of_file(now / name) == form_of_file(OLD / name)


def test_measured_times_keep_their_form(now):
    (here,), (old,) = ((folder / "lowrank" / "latency").glob("*.json") for folder in (now, OLD))
    assert form_of_file(here) == form_of_file(old)
