# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Algorithms of third parties: their place in a config, their schema, and their statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import nncf
import pytest
from torch import nn

import lowrank_nncf
from lowrank_hooks import CompressionAlgorithmRecord, hookimpl
from lowrank_nncf.nncf3.algorithms.order import check_order
from lowrank_plugin.errors import PluginError
from lowrank_plugin.plugins import manager

LOWRANK = {"algorithm": "lowrank", "ranks": {"conv": 4}, "decomposers": ["svd"]}
QUANTIZATION = {"algorithm": "quantization"}
HALVE = {"algorithm": "halve", "times": 2}


def _halve(model: nn.Module, section: Any, context: Any) -> tuple[nn.Module, Any]:
    model = copy.deepcopy(model)
    assert isinstance(context.dataset, nncf.Dataset)
    for parameter in model.parameters():
        parameter.data *= 0.5 ** section["times"]
    return model, {"times": section["times"], "chain": isinstance(model.conv, nn.Sequential)}


def _check(model: nn.Module, section: Any, context: Any) -> None:
    if section["times"] > 3:
        raise nncf.ValidationError("Three times is enough.")


SCHEMA = {
    "type": "object",
    "properties": {"times": {"description": "a whole number", "type": "integer"}},
    "additionalProperties": False,
}
AFTER, BEFORE = frozenset({"lowrank", "not_installed"}), frozenset({"quantization"})


@pytest.fixture
def plugin() -> Iterator[None]:
    """A plugin registered by hand for the length of a test."""

    class Plugin:
        @hookimpl
        def lowrank_compression_algorithms(self) -> Iterator[CompressionAlgorithmRecord]:
            yield CompressionAlgorithmRecord("halve", _halve, SCHEMA, _check, AFTER, BEFORE, "halves weights")

    made = Plugin()
    manager().register(made, "halving-party")
    yield
    manager().unregister(made)


@pytest.mark.usefixtures("plugin")
def test_it_runs_between_the_built_in_ones(model: nn.Module, dataset: nncf.Dataset) -> None:
    config = {"compression": [LOWRANK, HALVE, QUANTIZATION], "ignored_scopes": ["head"]}
    controller, _ = lowrank_nncf.create_compressed_model(model, config, dataset)
    assert controller.statistics().to_dict()["halve"] == {"times": 2, "chain": True}
    assert "halve: {'times': 2" in controller.statistics().to_str()


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("compression", "message"),
    [
        ([HALVE, LOWRANK], "order must be lowrank, halve: 'halve' must come after 'lowrank'"),
        ([QUANTIZATION, HALVE], "order must be halve, quantization: 'quantization' must come after 'halve'"),
        ([{**HALVE, "tims": 1}], "Unknown key 'tims'.*Did you mean 'times'"),
        ([{**HALVE, "times": 4}], "Three times is enough"),
        (
            [{"algorithm": "halv"}],
            "Did you mean 'halve'.*Algorithms: lowrank, magnitude_sparsity, rb_sparsity, quantization, halve",
        ),
    ],
    ids=["before lowrank", "after quantization", "typo", "check", "name"],
)
def test_bad_use_is_refused(compression: Any, message: str, model: nn.Module, dataset: nncf.Dataset) -> None:
    with pytest.raises(nncf.ValidationError, match=message):
        lowrank_nncf.create_compressed_model(model, {"compression": compression}, dataset)


def test_constraints_that_contradict_each_other() -> None:
    one = CompressionAlgorithmRecord("one", _halve, after=frozenset({"two"}))
    two = CompressionAlgorithmRecord("two", _halve, after=frozenset({"one"}))
    with pytest.raises(PluginError, match=r"one, two cannot be used together.*circle"):
        check_order([one, two])


def test_a_name_that_is_taken(model: nn.Module, dataset: nncf.Dataset) -> None:
    class Plugin:
        @hookimpl
        def lowrank_compression_algorithms(self) -> Iterator[CompressionAlgorithmRecord]:
            yield CompressionAlgorithmRecord("quantization", _halve)

    made = Plugin()
    manager().register(made, "other-party")
    try:
        with pytest.raises(PluginError, match="'quantization': lowrank-plugin and other-party"):
            lowrank_nncf.create_compressed_model(model, {"compression": HALVE}, dataset)
    finally:
        manager().unregister(made)


def test_the_listing_holds_the_algorithms_of_the_host():
    from lowrank_plugin.cli import list_plugins

    rows = {row["name"]: row for row in list_plugins() if row["kind"] == "compression algorithm"}
    assert {"lowrank", "quantization"} <= set(rows)
    assert rows["quantization"]["distribution"] == "lowrank-plugin"
    assert rows["quantization"]["summary"]
