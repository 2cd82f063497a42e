# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The plugin manager: third parties beside the built-ins, and every way in which they can be broken."""

from __future__ import annotations

import json
import sys
from importlib import metadata

import pytest

from lowrank_hooks import API_VERSION, CostModelRecord, DecomposerRecord, hookimpl
from lowrank_plugin import cli
from lowrank_plugin.errors import ConfigurationError, PluginError
from lowrank_plugin.plugins import COST_MODELS, DECOMPOSERS, Manager, manager
from lowrank_plugin.solvers.svd import Svd

GOOD = """
from lowrank_hooks import DecomposerRecord, hookimpl
from lowrank_plugin.solvers.svd import Svd

@hookimpl
def lowrank_decomposers():
    yield DecomposerRecord("third", Svd(), "a copy")
"""
BROKEN = "import no_such_module_anywhere"
MISSPELT = GOOD.replace("lowrank_decomposers", "lowrank_decomposer")
CONFLICTING = GOOD.replace('"third"', '"svd"')
RAISING = GOOD.replace("yield", "raise RuntimeError('out of order'); yield")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Returns a function that makes a distribution with one entry point, as pip would leave it in a folder."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, source: str) -> metadata.EntryPoint:
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        folder = tmp_path / f"{module}-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (folder / "entry_points.txt").write_text(f"[lowrank]\n{module} = {module}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)
        [found] = [each for each in metadata.entry_points(group="lowrank") if each.value == module]
        return found

    return install


def builtin() -> list[metadata.EntryPoint]:
    return [each for each in metadata.entry_points(group="lowrank") if each.value == "lowrank_plugin.builtin"]


def test_a_third_party_stands_beside_the_built_ins(installed):
    made = Manager(strict=True)
    made.load_entry_points([installed("third-party", GOOD), *builtin()])
    found = made.registered(DECOMPOSERS)
    assert (found["third"].distribution, found["third"].version) == ("third-party", "1.2")
    assert found["svd"].distribution == "lowrank-plugin"
    assert made.find(DECOMPOSERS, "third").summary == "a copy"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (BROKEN, "no_such_module_anywhere"),
        (MISSPELT, "lowrank_decomposer"),
        ("raise SystemError('no')", "SystemError: no"),
    ],
    ids=["import error", "misspelt hook", "raises"],
)
def test_a_broken_plugin_is_named_and_stops_nobody(installed, source, message):
    made = Manager()
    entry_points = [*builtin(), installed("bad-party", source), installed("third-party", GOOD)]
    with pytest.warns(RuntimeWarning, match=f"'bad_party' of bad-party could not be loaded.*{message}"):
        made.load_entry_points(entry_points)
    assert {"svd", "third"} <= set(made.registered(DECOMPOSERS))
    assert len(made.failures) == 1
    with pytest.raises(PluginError, match=message):
        Manager(strict=True).load_entry_points(entry_points)


def test_a_hook_that_raises_is_named(installed):
    made = Manager()
    made.load_entry_points([*builtin(), installed("bad-party", RAISING)])
    with pytest.warns(RuntimeWarning, match="lowrank_decomposers of bad-party failed.*out of order"):
        assert "svd" in made.registered(DECOMPOSERS)


def test_conflicting_names_name_both_distributions(installed):
    made = Manager(strict=True)
    made.load_entry_points([*builtin(), installed("other-party", CONFLICTING)])
    with pytest.raises(PluginError, match="named 'svd': lowrank-plugin and other-party"):
        made.registered(DECOMPOSERS)


def test_another_version_of_the_interface_is_refused():
    class Old:
        @hookimpl
        def lowrank_cost_models(self):
            yield CostModelRecord("old", lambda *_: 0.0, api_version=API_VERSION + 1)

    made = Manager()
    made.register(Old(), "old-party")
    with pytest.warns(RuntimeWarning, match="'old' of old-party was made for version 2"):
        assert made.registered(COST_MODELS) == {}


def test_each_plugin_is_asked_once_until_the_plugins_change():
    asked = []

    class Counting:
        @hookimpl
        def lowrank_cost_models(self):
            asked.append(self)
            raise RuntimeError("out of order")

    made = Manager()
    made.register(Counting(), "third-party")
    with pytest.warns(RuntimeWarning, match="out of order"):
        made.registered(COST_MODELS)
    made.registered(COST_MODELS)
    assert len(asked) == len(made.failures) == 1
    made.unregister(name="third-party")
    assert made.registered(COST_MODELS) == {}
    assert len(asked) == 1


def test_unknown_names_list_the_choices():
    with pytest.raises(ConfigurationError, match=r"Did you mean 'spatial_svd'.*Choose one of: .*svd"):
        manager().find(DECOMPOSERS, "spatialsvd")


@pytest.mark.parametrize(
    ("variable", "value", "there"),
    [("LOWRANK_DISABLE_PLUGINS", "third-party", False), ("LOWRANK_ONLY_PLUGINS", "nobody", False), ("OTHER", "", True)],
)
def test_environment_switches(installed, monkeypatch, variable, value, there):
    installed("third-party", GOOD)
    monkeypatch.setenv(variable, value)
    manager.cache_clear()
    try:
        found = manager().registered(DECOMPOSERS)
        assert ("third" in found) is there
        assert "svd" in found
    finally:
        manager.cache_clear()


def test_tracing_prints_hook_calls(monkeypatch, capfd):
    monkeypatch.setenv("LOWRANK_TRACE_PLUGINS", "1")
    manager.cache_clear()
    try:
        assert manager().hook.lowrank_cost_models()
    finally:
        manager.cache_clear()
    assert "lowrank_cost_models" in capfd.readouterr().err


def test_built_ins_come_through_the_public_hook():
    assert {"svd", "tucker2", "spatial_svd"} <= set(manager().registered(DECOMPOSERS))
    assert all(isinstance(each.record, DecomposerRecord) for each in manager().registered(DECOMPOSERS).values())
    assert isinstance(manager().find(DECOMPOSERS, "svd").decomposer, Svd)


def test_the_command_lists_everything(capsys):
    assert cli.main(["plugins"]) == 0
    assert "tucker2" in capsys.readouterr().out
    assert cli.main(["plugins", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["failures"] == []
    assert {"kind": "rank policy", "name": "uniform"}.items() <= {
        key: value for row in listed["plugins"] if row["name"] == "uniform" for key, value in row.items()
    }.items()


HOSTS = {
    "framework absent": ("import no_such_module_anywhere", None),
    "a part of it absent": ("import no_such_module_anywhere.part", None),
    "something else absent": ("import another_missing_module", "another_missing_module"),
    "broken": ("raise RuntimeError('out of order')", "RuntimeError: out of order"),
    "misspelt": ("ALGORITHM = {}", "ALGORITHMS"),
}


@pytest.mark.parametrize("case", HOSTS)
def test_a_host_is_passed_over_only_where_its_framework_is_absent(case, tmp_path, monkeypatch):
    source, told = HOSTS[case]
    (tmp_path / "some_host.py").write_text(source)
    folder = tmp_path / "some_host-1.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: some-host\nVersion: 1.2\n")
    (folder / "entry_points.txt").write_text("[lowrank.hosts]\nno_such_module_anywhere = some_host:ALGORITHMS\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "some_host", raising=False)
    made = Manager()
    made.load_entry_points(builtin())
    monkeypatch.setattr(cli, "manager", lambda: made)
    if told is None:
        cli.list_plugins()
        assert made.failures == []
    else:
        with pytest.warns(RuntimeWarning, match=f"host 'no_such_module_anywhere' of some-host.*{told}"):
            cli.list_plugins()
        with pytest.warns(RuntimeWarning, match=told):
            assert cli.main(["plugins"]) == 1
        assert len(made.failures) == 1
