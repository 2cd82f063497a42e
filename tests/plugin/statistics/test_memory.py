# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Statistics within a limit of memory."""

from __future__ import annotations

import pytest
import torch
from allocations import allocated
from torch import nn

import lowrank_plugin
from lowrank_plugin.layers.survey import survey
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
from lowrank_plugin.settings import Calibration, Settings
from lowrank_plugin.statistics import passes
from lowrank_plugin.statistics.autocorrelation import Autocorrelation
from lowrank_plugin.statistics.collection import ENOUGH, collect
from lowrank_plugin.statistics.moments import Moments
from lowrank_plugin.statistics.vectors import Vectors

TIGHT = 2.6e-3
"""Gigabytes that the widest layer of the network needs, and hardly more."""


@pytest.fixture
def layers(network, images):
    return survey(network, images[0], Settings(budget={"macs": 0.5}), manager().registered(LAYER_ADAPTERS)).layers


def test_what_is_held_is_what_was_predicted(network, images, layers):
    observed = collect(network, layers, images)
    kinds = {}
    for name, layer in layers.items():
        need, patches = passes.need(layer, network.get_submodule(name), 32, 8, 12.0), observed[name].patches
        # small batches wait for each other, until they are many
        waiting = 4 * ENOUGH * layer.shape.in_channels * layer.shape.taps if isinstance(patches, Moments) else 0
        assert patches.products.nbytes + patches.sums.nbytes + waiting == need.held
        kinds[type(patches)] = name
    assert kinds.keys() == {Moments, Autocorrelation}


def test_vectors_are_held_as_was_predicted():
    network, inputs = nn.Sequential(nn.Linear(512, 16)), [torch.randn(8, 512)] * 4
    layers = survey(network, inputs[0], Settings(budget={"macs": 0.5}), manager().registered(LAYER_ADAPTERS)).layers
    rows = collect(network, layers, inputs)["0"].patches.rows
    # both the parts and what they are put together to are there for a moment
    assert 2 * rows.nbytes == passes.need(layers["0"], network[0], 32, 8, 12.0).held


def running(network, inputs):
    """Peak bytes of running a network."""

    def run() -> None:
        with torch.no_grad():
            for batch in inputs:
                network(batch)

    return allocated(run)


def test_the_peak_is_what_the_allocator_sees(network, images, layers):
    predicted = passes.divide(network, layers, images, Calibration.positions, Calibration.memory_gb)
    assert predicted.groups == [list(layers)]
    beyond = allocated(lambda: collect(network, layers, images)) - running(network, images)
    assert beyond <= predicted.peak <= 1.7 * beyond


@pytest.mark.parametrize(
    ("layer", "shape", "kind"),
    [
        (nn.Conv2d(24, 24, 3, padding=1), (8, 24, 16, 16), Autocorrelation),
        (nn.Conv2d(24, 32, 3, stride=2, padding=1), (8, 24, 16, 16), Moments),
        (nn.Linear(64, 16), (512, 64), Moments),
        (nn.Linear(512, 16), (8, 512), Vectors),
    ],
    ids=["correlations", "drawn patches", "vectors of which there are many", "few vectors"],
)
def test_the_peak_of_one_layer_is_what_the_allocator_sees(layer, shape, kind):
    network, inputs = nn.Sequential(layer), [torch.randn(shape)] * 4
    layers = survey(network, inputs[0], Settings(budget={"macs": 0.5}), manager().registered(LAYER_ADAPTERS)).layers
    assert isinstance(collect(network, layers, inputs)["0"].patches, kind)
    beyond = allocated(lambda: collect(network, layers, inputs)) - running(network, inputs)
    predicted = passes.divide(network, layers, inputs, Calibration.positions, Calibration.memory_gb)
    assert beyond <= predicted.peak <= 1.7 * beyond


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
