# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What holds for every way to write a network: nothing of the user's changes, and what the report says is so."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy
import pytest
import torch
from plugin.fingerprint import unchanged
from plugin.idioms import IDIOMS, Idiom
from torch import nn
from torch.utils import _pytree as pytree

import lowrank_plugin
from lowrank_plugin.data.batches import call

SECTION: dict[str, Any] = {"budget": {"macs": 0.8}, "rank_multiple": 1, "decomposers": ["svd", "tucker2"]}
DISTILL: dict[str, Any] = {**SECTION, "repair": "distill", "distillation": {"steps": 1, "network_steps": 1}}

COPIED = [name for name, each in IDIOMS.items() if each.copied]
UNCOPIED = [name for name, each in IDIOMS.items() if not each.copied]


# torch's remark about checkpoints of parts that nothing is learned in
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")


@pytest.fixture
def idiom(request: pytest.FixtureRequest) -> Idiom:
    return IDIOMS[request.param]


every = pytest.mark.parametrize("idiom", IDIOMS, indirect=True)
copied = pytest.mark.parametrize("idiom", COPIED, indirect=True)


@every
def test_a_plan_and_statistics_change_nothing(idiom):
    model, batches = idiom.network(), idiom.batches()
    with unchanged(model, batches):
        plan = lowrank_plugin.plan(model, batches, **SECTION)
    with unchanged(model, batches):
        statistics = lowrank_plugin.collect_statistics(model, batches, **{"ignored_scopes": []})
    with unchanged(model, batches):
        again = lowrank_plugin.plan(model, statistics=statistics, example_input=batches[0], **SECTION)
    assert again["model"]["macs"] == plan["model"]["macs"] or again["layers"].keys() == plan["layers"].keys()


@copied
@pytest.mark.parametrize("section", [SECTION, DISTILL], ids=["moments", "distill"])
def test_a_compression_changes_nothing_but_its_copy(idiom, section):
    model, batches = idiom.network(), idiom.batches()
    with unchanged(model, batches):
        small = lowrank_plugin.decompose(model, batches, **section)
    assert chains(small)
    assert all(
        isinstance(each, nn.Parameter)
        for module in small.modules()
        for each in module._parameters.values()
        if each is not None
    )
    theirs = {id(each) for each in model.parameters()}
    assert not any(id(each) in theirs for each in small.parameters())


@copied
def test_what_is_done_with_a_compressed_network_changes_nothing(idiom):
    model, batches = idiom.network(), idiom.batches()
    plan = lowrank_plugin.plan(model, batches, **SECTION)
    with unchanged(model, plan, batches):
        small = lowrank_plugin.apply(model, plan, batches)
    with unchanged(small, batches):
        lowrank_plugin.report(small).to_str()
        state = lowrank_plugin.get_state(small)
        lowrank_plugin.to_dense(small)
        lowrank_plugin.rotate_chains(small, batches)
    with unchanged(model, state):
        restored = lowrank_plugin.restore(model, state)
    restored.load_state_dict(small.state_dict())
    assert same(restored, small, batches[0])


def chains(model: nn.Module) -> list[str]:
    layers = lowrank_plugin.report(model).to_dict()["layers"]
    return [name for name, entry in layers.items() if entry["decomposer"] != "dense"]


def outputs(model: nn.Module, batch: Any) -> list[torch.Tensor]:
    """What a model puts out in eval mode, with the generators always in the same state."""
    model, batch = copy.deepcopy(model).eval(), copy.deepcopy(batch)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        random.seed(3)
        numpy.random.seed(3)
        found = call(model, batch)
    return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)]


def same(first: nn.Module, second: nn.Module, batch: Any) -> bool:
    pairs = zip(outputs(first, batch), outputs(second, batch), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)
