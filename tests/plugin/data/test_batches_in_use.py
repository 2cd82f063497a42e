# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Batches of many forms on their whole way: what is reported of them is right, and they are the user's afterwards."""

from __future__ import annotations

import copy
from collections import UserDict

import nncf
import pytest
import torch
from plugin.data.batch_forms import same
from torch import nn

import lowrank_plugin
from lowrank_plugin.errors import CalibrationError

SECTION = {"budget": {"macs": 0.6}, "rank_multiple": 1, "decomposers": ["svd"]}


class Body(nn.Module):
    """Two convolutions; what comes before them is up to the subclass."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(channels, 16, 3), nn.Conv2d(16, 16, 3)

    def body(self, x):
        return self.second(self.first(x).relu()).mean((2, 3))


class Prepared(Body):
    """Puts out what the models beneath do, and leaves its input alone."""

    def forward(self, x):
        return self.body((x - 0.5) / 0.25)


class OnTensors(Body):
    def forward(self, x):
        return self.body(x.sub_(0.5).div_(0.25))


class OnLists(Body):
    def forward(self, images):
        x = torch.stack([image.sub_(0.5).div_(0.25) for image in images])
        images.clear()
        return self.body(x)


class OnDicts(Body):
    def forward(self, batch):
        batch["image"] = batch["image"].sub_(0.5)
        batch["seen"] = True
        return self.body(batch.pop("image").div_(0.25))


class ByName(Body):
    def forward(self, image):
        return self.body(image.sub_(0.5).div_(0.25))


DATA = [torch.rand(8, 3, 10, 10, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
INPLACE = {
    "tensors": (OnTensors, DATA),
    "tuples": (OnTensors, [(x, torch.zeros(8)) for x in DATA]),
    "lists": (OnLists, [(list(x), None) for x in DATA]),
    "lists alone": (OnLists, [list(x) for x in DATA]),
    "dicts": (OnDicts, [{"image": x} for x in DATA]),
    "user dicts": (OnDicts, [UserDict(image=x) for x in DATA]),
    "dicts by name": (ByName, [{"image": x} for x in DATA]),
}


@pytest.mark.parametrize(("model", "data"), INPLACE.values(), ids=INPLACE)
def test_what_works_in_place_leaves_the_data_alone_and_changes_nothing(model, data):
    before, plain = copy.deepcopy(data), Prepared()
    wanted = lowrank_plugin.plan(plain, DATA, **SECTION)
    made = lowrank_plugin.plan(model(), data, **SECTION)
    assert same(data, before)
    assert made["layers"].keys() == wanted["layers"].keys() == {"first", "second"}
    for name, layer in wanted["layers"].items():
        assert made["layers"][name]["rank"] == layer["rank"]
        assert made["layers"][name]["error"] == pytest.approx(layer["error"], rel=1e-5)
    small = lowrank_plugin.decompose(model(), data, repair="distill", **SECTION)
    assert same(data, before)
    by_hand = lowrank_plugin.decompose(plain, DATA, repair="distill", **SECTION)
    torch.testing.assert_close(small.state_dict(), by_hand.state_dict(), rtol=1e-3, atol=1e-4)
    seen = lowrank_plugin.collect_statistics(model(), data)
    assert same(data, before)
    assert seen.samples == 24
    lowrank_plugin.rotate_chains(small, data)
    assert same(data, before)


class Detector(Body):
    def forward(self, images, targets=None):
        if not isinstance(images, list):
            msg = "images is expected to be a list"
            raise TypeError(msg)
        return self.body(torch.stack(images))


def images(count, size=10):
    return [torch.rand(3, size, size) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("form", ["targets", "alone", "nncf"])
def test_macs_are_of_one_image(count, form):
    data = {
        "targets": [(images(count), [{"boxes": torch.rand(2, 4)}] * count)] * 4,
        "alone": [images(count)] * 4,
        "nncf": nncf.Dataset([(images(count), None)] * 4, lambda item: item[0]),
    }[form]
    made = lowrank_plugin.plan(Detector(), data, **SECTION)
    assert made["model"]["macs"][0] == 8 * 8 * 16 * 3 * 9 + 6 * 6 * 16 * 16 * 9


def test_many_single_images_are_never_cut_into_channels():
    data = [(images(1), None) for _ in range(12)]
    seen = lowrank_plugin.collect_statistics(Detector(), data, calibration={"samples": 10})
    assert seen.samples == 10


def test_images_of_different_sizes():
    class Each(Body):
        def forward(self, images, targets=None):
            return torch.cat([self.body(image[None]) for image in images])

    data = [([torch.rand(3, 9, 12), torch.rand(3, 11, 8)], None) for _ in range(4)]
    small = lowrank_plugin.decompose(Each(), data, repair="distill", **SECTION)
    assert lowrank_plugin.report(small).to_dict()["layers"].keys() == {"first", "second"}


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 32), nn.Linear(32, 7)

    def forward(self, x, edge_index, edge_weight=None):
        x = self.first(x).relu()
        return self.second(torch.zeros_like(x).index_add_(0, edge_index[1], x[edge_index[0]]))


def graph(nodes, edges, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(nodes, 20, generator=generator), torch.randint(nodes, (2, edges), generator=generator)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("section", [{}, {"calibration": {"samples": 40}}])
def test_graphs_stay_whole(labels, section):
    data = [(*graph(900, 3000), torch.zeros(900)) if labels else graph(900, 3000)]
    made = lowrank_plugin.plan(Graph(), data, **SECTION, **section)
    assert made["model"]["macs"][0] == 900 * (20 * 32 + 32 * 7)
    lowrank_plugin.decompose(Graph(), data, **SECTION, **section)


def test_graphs_are_distilled_graph_by_graph():
    data = [graph(30 + each, 80, each) for each in range(6)]
    seen = lowrank_plugin.collect_statistics(Graph(), data)
    assert seen.samples == 6
    lowrank_plugin.decompose(Graph(), data, repair="distill", **SECTION)


def test_labels_change_nothing():
    class Scaled(Prepared):
        def forward(self, x, scale=None):
            return super().forward(x) if scale is None else super().forward(x * scale.reshape(-1, 1, 1, 1))

    labelled = [(x, torch.arange(8)) for x in DATA]
    assert lowrank_plugin.plan(Scaled(), labelled, **SECTION) == lowrank_plugin.plan(Scaled(), DATA, **SECTION)


def test_contexts_of_callers_change_nothing():
    model = Prepared()
    wanted = lowrank_plugin.plan(model, DATA, **SECTION)
    with torch.inference_mode(), torch.autocast("cpu"):
        data = [x.clone() for x in DATA]
        assert lowrank_plugin.plan(model, data, **SECTION) == wanted


def test_statistics_of_other_forms_are_known_and_give_an_example():
    model = Detector()
    data = [(images(2), None) for _ in range(4)]
    seen = lowrank_plugin.collect_statistics(model, data)
    assert lowrank_plugin.plan(model, statistics=seen, **SECTION)["layers"].keys() == {"first", "second"}
    other = lowrank_plugin.collect_statistics(model, [(images(2), None) for _ in range(4)])
    assert seen.merge(other).samples == 16
    sources = ([UserDict(image=x + shift) for x in DATA] for shift in (0, 1))
    first, second = (lowrank_plugin.collect_statistics(OnDicts(), data) for data in sources)
    assert first.merge(second).samples == 48


def test_the_shapes_of_a_message_are_the_users():
    with pytest.raises(CalibrationError, match=r"tensors of shapes \[\(600, 5\)\]"):
        lowrank_plugin.plan(nn.Sequential(nn.Linear(4, 4)), [torch.zeros(600, 5)], **SECTION)
