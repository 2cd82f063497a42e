# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The README, or what it refers to, has a row for everything that users type."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lowrank_plugin import plugins
from lowrank_plugin.plugins import manager
from lowrank_plugin.settings import SCHEMA

ROOT = Path(__file__).parents[2]
TEXT = "\n".join(path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
ROWS = {
    name: line
    for line in TEXT.splitlines()
    if line.startswith("| `")
    for name in re.findall(r"`([^`]+)`", line.split("|")[1])
}
"""Rows of all tables by the names in their first cells, those of one cell each."""


@pytest.mark.parametrize("name", SCHEMA["properties"])
def test_settings_have_a_row_with_their_keys(name):
    assert name in ROWS
    properties = SCHEMA["properties"][name]
    for each in (properties, *properties.get("anyOf", ())):
        for key in each.get("properties", ()):
            assert f'"{key}": ' in ROWS[name]
        for value in each.get("enum", ()):
            assert value is None or f'"{value}"' in ROWS[name]


@pytest.mark.parametrize(
    "name", [name for kind in (plugins.DECOMPOSERS, plugins.RANK_POLICIES) for name in manager().registered(kind)]
)
def test_decomposers_and_policies_have_a_row(name):
    assert name in ROWS


@pytest.mark.parametrize("name", [*manager().registered(plugins.COST_MODELS), "error"])
def test_budgets_are_in_their_row(name):
    assert f'{{"{name}": ' in ROWS["budget"]


@pytest.mark.parametrize("name", [value for key, value in vars(plugins).items() if key.endswith("_VARIABLE")])
def test_variables_are_named(name):
    assert re.search(rf"`{name}(=1)?`", TEXT)
