# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Statistics within a limit of memory."""

from __future__ import annotations

import pytest
import torch

import lowrank_plugin
from lowrank_plugin.layers.survey import survey
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
from lowrank_plugin.settings import Settings
from lowrank_plugin.statistics import passes
from lowrank_plugin.statistics.collection import collect

TIGHT = 2.6e-3
"""Gigabytes that the widest layer of the network needs, and hardly more."""


def test_what_is_held_is_what_was_predicted(network, images):
    settings = Settings(budget={"macs": 0.5})
    layers = survey(network, images[0], settings, manager().registered(LAYER_ADAPTERS)).layers
    predicted = passes.divide(network, layers, images, settings)
    assert predicted.groups == [list(layers)]
    observed = collect(network, layers, images)
    held = sum(each.patches.products.nbytes + each.patches.sums.nbytes for each in observed.values())
    needs = [passes.need(layer, network.get_submodule(name), 32, 8, 12.0) for name, layer in layers.items()]
    # the rest is for small batches that wait for each other
    assert 0.5 * sum(need.held for need in needs) <= held <= sum(need.held for need in needs)
    tensors = sum(need.held for need in needs) + max(need.passing for need in needs)
    assert tensors < predicted.peak <= 1.06 * tensors


def test_several_passes_see_what_one_sees(network, images):
    section = {"budget": {"macs": 0.5}, "rank_multiple": 4}
    one = lowrank_plugin.plan(network, images, **section)
    some = lowrank_plugin.plan(network, images, calibration={"memory_gb": TIGHT}, **section)
    assert one["memory"]["passes"] == 1
    assert some["memory"]["passes"] > 1
    assert some["memory"]["peak"] <= TIGHT * passes.GIGABYTE < one["memory"]["peak"]
    assert some["layers"] == one["layers"]
    x = images[0]
    small = lowrank_plugin.apply(network, one, images), lowrank_plugin.apply(network, some, images)
    assert torch.equal(small[0](x), small[1](x))


def test_a_layer_too_wide_for_the_limit_stays_dense(network, images):
    made = lowrank_plugin.plan(network, images, calibration={"memory_gb": 3e-4}, ranks={"6": 2})
    assert "its statistics need 0.000" in made["skipped"]["3.conv1"]
    assert "but memory_gb is 0.0003" in made["skipped"]["3.conv1"]
    assert made["layers"]["6"]["decomposer"] == "svd"
    with pytest.raises(lowrank_plugin.errors.PlanError, match="memory_gb"):
        lowrank_plugin.plan(network, images, calibration={"memory_gb": 3e-4}, ranks={"6": 2}, on_failure="raise")


def test_plans_say_in_how_many_directions_inputs_vary(network, images):
    entries = lowrank_plugin.plan(network, images, budget={"macs": 0.5}, rank_multiple=4)["layers"]
    widths = {"0": 27, "1.conv1": 216, "3.conv2": 288, "6": 32}
    for name, width in widths.items():
        assert 1 <= entries[name]["effective_rank"] < width
