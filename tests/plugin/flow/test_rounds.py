# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A compressed network that is compressed again: one state, and one way back."""

from __future__ import annotations

import json

import pytest
import torch
from plugin.fingerprint import unchanged
from torch import nn

import lowrank_plugin
from lowrank_plugin.errors import LowRankError


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(64, 48),
        ).eval()  # fmt: skip


def data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 3, 12, 12, generator=generator) for _ in range(4)]


def once(model: nn.Module, decomposer: str) -> nn.Module:
    section = {"budget": {"macs": 0.6}, "rank_multiple": 1, "decomposers": [decomposer]}
    return lowrank_plugin.decompose(model, data(), **section)


@pytest.fixture(scope="module")
def first() -> nn.Module:
    return once(network(), "tucker2")


@pytest.fixture(scope="module")
def second(first) -> nn.Module:
    with unchanged(first):
        return once(first, "svd")


def test_the_second_round_compresses_stages_of_the_first(first, second):
    one, two = (lowrank_plugin.report(model).to_dict() for model in (first, second))
    assert two["earlier"] == one
    assert two["model"]["macs"][0] == one["model"]["macs"][1]
    assert two["model"]["macs"][1] <= 0.6 * two["model"]["macs"][0]
    assert "1.1" in two["layers"]
    assert two["layers"]["1.1"]["decomposer"] == "svd"
    assert two["model"]["parameters"][1] == sum(each.numel() for each in second.parameters())
    assert str(lowrank_plugin.report(second)).count("whole model") == 2


def test_one_state_restores_into_the_fresh_original(second):
    state = json.loads(json.dumps(lowrank_plugin.get_state(second)))
    restored = lowrank_plugin.restore(network(), state).eval()
    restored.load_state_dict(second.state_dict())
    assert torch.equal(restored(data()[0]), second(data()[0]))
    assert (
        lowrank_plugin.report(restored).to_dict()["layers"].keys()
        == lowrank_plugin.report(second).to_dict()["layers"].keys()
    )
    assert lowrank_plugin.get_state(restored) == state


def test_to_dense_undoes_both_rounds(second):
    dense = lowrank_plugin.to_dense(second)
    fresh = network()
    assert [type(module) for module in dense.modules()] == [type(module) for module in fresh.modules()]
    assert {name: each.shape for name, each in dense.state_dict().items()} == {
        name: each.shape for name, each in fresh.state_dict().items()
    }
    torch.testing.assert_close(dense(data()[0]), second(data()[0]), rtol=1e-4, atol=1e-5)
    with pytest.raises(LowRankError, match="carries no record"):
        lowrank_plugin.report(dense)


def test_to_dense_of_a_stage_leaves_the_first_round(first, second):
    names = [name for name, each in lowrank_plugin.report(second).to_dict()["layers"].items() if each["rank"]]
    back = lowrank_plugin.to_dense(second, *names)
    assert lowrank_plugin.report(back).to_dict() == lowrank_plugin.report(first).to_dict()
    assert back.state_dict().keys() == first.state_dict().keys()
    torch.testing.assert_close(back(data()[0]), second(data()[0]), rtol=1e-4, atol=1e-5)


def test_to_dense_of_a_chain_undoes_what_was_done_to_its_stages(second):
    back = lowrank_plugin.to_dense(second, "1")
    assert isinstance(back[1], nn.Conv2d)
    torch.testing.assert_close(back(data()[0]), second(data()[0]), rtol=1e-4, atol=1e-5)
    assert not any(name.startswith("1.") for name in lowrank_plugin.report(back).to_dict()["layers"])


def test_a_layer_alone_can_be_compressed_twice():
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(32, 32)
    small = lowrank_plugin.decompose(layer, [x], ranks={"": 12}, rank_multiple=1)
    smaller = lowrank_plugin.decompose(small, [x], ranks={"0": 4}, rank_multiple=1)
    restored = lowrank_plugin.restore(nn.Linear(32, 32), lowrank_plugin.get_state(smaller))
    restored.load_state_dict(smaller.state_dict())
    assert torch.equal(restored(x), smaller(x))
    dense = lowrank_plugin.to_dense(smaller)
    assert isinstance(dense, nn.Linear)
    torch.testing.assert_close(dense(x), smaller(x), rtol=1e-4, atol=1e-5)


def test_rotated_and_distilled_a_second_time(first):
    section = {"budget": {"macs": 0.7}, "rank_multiple": 1, "decomposers": ["svd"], "repair": "distill"}
    small = lowrank_plugin.decompose(first, data(), **section)
    rotated = lowrank_plugin.rotate_chains(small, data())
    torch.testing.assert_close(rotated(data()[0]), small(data()[0]), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(lowrank_plugin.to_dense(small)(data()[0]), small(data()[0]), rtol=1e-4, atol=1e-5)
