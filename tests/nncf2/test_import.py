# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What is told of the host for the other NNCF."""

from __future__ import annotations

import importlib

import pytest

import lowrank_nncf
from lowrank_plugin.cli import list_plugins
from lowrank_plugin.plugins import manager


def test_the_listing_has_nothing_to_report() -> None:
    """The host is loaded as any other: nothing pretends that NNCF were not installed."""
    rows = list_plugins()
    assert not manager().failures
    assert "compression algorithm" not in {row["kind"] for row in rows}
    assert lowrank_nncf.ALGORITHMS == {}


def test_the_other_host_says_what_to_import() -> None:
    with pytest.raises(ImportError, match=r"for NNCF 3, and this is NNCF 2.*import lowrank_nncf\.$") as caught:
        importlib.import_module("lowrank_nncf.nncf3")
    assert type(caught.value) is ImportError
    assert caught.value.name == "lowrank_nncf.nncf3"
