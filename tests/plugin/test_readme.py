# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The README names everything that users type."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowrank_plugin import plugins
from lowrank_plugin.plugins import manager
from lowrank_plugin.settings import SCHEMA

README = (Path(__file__).parents[2] / "README.md").read_text()
NAMES = [
    *SCHEMA["properties"],
    *(
        name
        for kind in (plugins.DECOMPOSERS, plugins.COST_MODELS, plugins.RANK_POLICIES)
        for name in manager().registered(kind)
    ),
    *(value for key, value in vars(plugins).items() if key.endswith("_VARIABLE")),
]


@pytest.mark.parametrize("name", NAMES)
def test_name_is_documented(name):
    assert any(f"{quote}{name}" in README for quote in ("`", '"', "{"))
