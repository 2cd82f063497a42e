# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Save and restore: bit-equal outputs, nothing solved, and every state that cannot be restored."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from torch import nn

import lowrank_plugin
from lowrank_plugin.errors import PlanError, PluginError
from lowrank_plugin.plugins import DECOMPOSERS, manager

DECOMPOSERS = list(manager().registered(DECOMPOSERS))


@pytest.mark.parametrize("decomposer", DECOMPOSERS)
def test_round_trip_is_bit_equal(network, images, decomposer):
    count = {"tucker2": 2, "tensorly:partial_tucker": 2, "tucker2_spatial": 3, "tucker2_cpd": 3}.get(decomposer, 1)
    ranks = {"1.conv1": [6] * count, "2": [6] * count}
    small = lowrank_plugin.decompose(network, images, ranks=ranks, decomposers=[decomposer])
    file = io.BytesIO()
    torch.save({"state": lowrank_plugin.get_state(small), "weights": small.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    restored = lowrank_plugin.restore(network, loaded["state"])
    restored.load_state_dict(loaded["weights"])
    with torch.no_grad():
        assert torch.equal(restored(images[0]), small(images[0]))
    assert lowrank_plugin.report(restored).to_str() == lowrank_plugin.report(small).to_str()
    assert isinstance(lowrank_plugin.to_dense(restored)[2], nn.Conv2d)


@pytest.fixture
def state(network, images):
    small = lowrank_plugin.decompose(network, images, budget={"macs": 0.6}, rank_multiple=2)
    return lowrank_plugin.get_state(small)


def test_state_is_json(state):
    assert json.loads(json.dumps(state)) == state
    assert set(state["versions"]) == {"lowrank-plugin", "torch"}


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda s: s.update(format=2), PlanError, "Invalid value 2 .*install a newer"),
        (lambda s: s.pop("record"), PlanError, "record"),
        (lambda s: _first(s).update(decomposer="gone", plugins={"decomposer": "lost"}), PluginError, "'gone' of lost"),
        (lambda s: _first(s).update(kind="Gone", plugins={"layer adapter": "lost"}), PluginError, "'Gone' of lost"),
        (lambda s: _first(s).update(parameters=[1, 1]), PlanError, "with 1 weights, but here it has"),
        (lambda s: _first(s).update(kind="Linear"), PlanError, "but in this model it is a Conv2d"),
        (lambda s: s["record"]["layers"].update({"9": _first(s)}), PlanError, "the model has no such layer"),
    ],
    ids=["newer", "truncated", "decomposer", "adapter", "size", "type", "layer"],
)
def test_states_that_cannot_be_restored(untouched, state, edit, error, message):
    state = copy.deepcopy(state)
    edit(state)
    with pytest.raises(error, match=message):
        lowrank_plugin.restore(untouched, state)


def _first(state):
    return next(entry for entry in state["record"]["layers"].values() if entry["decomposer"] != "dense")
