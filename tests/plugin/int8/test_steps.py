# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Observers and bars hear of the steps that prepare a network for int8, and each of the same ones."""

from __future__ import annotations

import pytest
import torch

import lowrank_plugin
from lowrank_hooks import hookimpl
from lowrank_plugin.int8.rounding import Grid, round_weights
from lowrank_plugin.plugins import manager


@pytest.fixture
def events():
    found = []

    class Observer:
        @hookimpl
        def lowrank_step(self, event):
            found.append(event)

    observer = Observer()
    manager().register(observer, "observer")
    yield found
    manager().unregister(observer)


class Bars:
    """Counts what bars show."""

    def __init__(self):
        self.shown = []

    def __call__(self, items, *, description, total):
        for done, item in enumerate(items, start=1):
            yield item
            self.shown.append((description, done, total))


def test_rotating_tells_of_each_batch(network, images, events):
    small = lowrank_plugin.decompose(network, images, ranks={"1.conv1": 4}, decomposers=["svd"])
    events.clear()
    bars = Bars()
    lowrank_plugin.rotate_chains(small, images, progress=bars)
    total = len(images)
    assert [(each.step, each.done, each.total, each.layer) for each in events] == [
        ("rotate", done, total, None) for done in range(1, total + 1)
    ]
    assert bars.shown == [("Rotating chains", done, total) for done in range(1, total + 1)]


def test_rounding_tells_of_each_layer(network, images, events):
    grids = {
        name: Grid(*(torch.full((network.get_submodule(name).out_channels, 1), value) for value in (0.1, -1.0, 1.0)))
        for name in ("1.conv1", "1.conv2")
    }
    bars = Bars()
    round_weights(network, grids, images, progress=bars)
    told = [(each.step, each.done, each.total, each.layer) for each in events if each.step == "round"]
    assert told == [("round", 1, 2, "1.conv1"), ("round", 2, 2, "1.conv2")]
    assert bars.shown[-2:] == [("Rounding weights", 1, 2), ("Rounding weights", 2, 2)]
    collected = [each for each in events if each.step == "collect"]
    assert [each.done for each in collected] == list(range(1, len(images) + 1))
