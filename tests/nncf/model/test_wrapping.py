# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Models that NNCF has pruned before: refused, or their masks baked in so that the fit is of the pruned network."""

from __future__ import annotations

import copy

import nncf
import pytest
import torch
from nncf.torch.function_hook import is_wrapped
from torch import Tensor, nn
from untouched import assert_same_state, state_of

import lowrank_nncf
import lowrank_plugin
from lowrank_nncf.nncf3.model.wrapping import bake_pruning

LOWRANK = {"algorithm": "lowrank", "ranks": {"conv": 8}, "decomposers": ["svd"]}
MODES = nncf.PruneMode


def pruned_by(mode: nncf.PruneMode, model: nn.Module, images: Tensor) -> nn.Module:
    ratio = None if mode is MODES.UNSTRUCTURED_REGULARIZATION_BASED else 0.7
    pruned = nncf.prune(copy.deepcopy(model), mode, ratio=ratio, examples_inputs=images[:1])
    if ratio is None:
        generator = torch.Generator().manual_seed(3)
        for name, parameter in pruned.named_parameters():
            if name.endswith(".mask"):
                parameter.data = torch.randn(parameter.shape, generator=generator)
    return pruned


@pytest.fixture(params=list(MODES), ids=lambda mode: mode.value)
def pruned(request: pytest.FixtureRequest, model: nn.Module, images: Tensor) -> nn.Module:
    return pruned_by(request.param, model, images)


def test_baked_model_is_plain_and_computes_the_same(pruned: nn.Module, model: nn.Module, images: Tensor) -> None:
    before = state_of(pruned)
    baked = bake_pruning(pruned)
    assert_same_state(pruned, before)
    assert not is_wrapped(baked)
    assert baked.state_dict().keys() == model.state_dict().keys()
    assert all(parameter.requires_grad for parameter in baked.parameters())
    assert baked.training
    with torch.no_grad():
        assert torch.equal(baked.eval()(images), pruned.eval()(images))
    zeros = {name: float((module.weight == 0).float().mean()) for name, module in baked.named_modules() if name}
    assert zeros["conv"] > 0.3
    assert float((model.conv.weight == 0).float().mean()) == 0


def test_fit_is_of_the_masked_kernel(pruned: nn.Module, images: Tensor, dataset: nncf.Dataset) -> None:
    """At the full rank the chain multiplies out to the masked kernel, not to the weight NNCF keeps below the mask."""
    section = {**LOWRANK, "ranks": {"conv": 32}, "repair": "none"}
    config = {"compression": section, "bake_pruning": True}
    _, compressed = lowrank_nncf.create_compressed_model(pruned, config, dataset)
    kernel = lowrank_plugin.to_dense(compressed).conv.weight.detach()
    masked = bake_pruning(pruned).conv.weight.detach()
    torch.testing.assert_close(kernel, masked, atol=1e-5, rtol=1e-4)
    assert (kernel - pruned.conv.weight.detach()).norm() / masked.norm() > 0.3


def test_statistics_are_those_of_the_pruned_network(pruned: nn.Module, dataset: nncf.Dataset) -> None:
    config = {"compression": LOWRANK, "bake_pruning": True}
    _, at_once = lowrank_nncf.create_compressed_model(pruned, config, dataset)
    _, by_hand = lowrank_nncf.create_compressed_model(bake_pruning(pruned), {"compression": LOWRANK}, dataset)
    assert all(torch.equal(one, other) for one, other in zip(at_once.parameters(), by_hand.parameters(), strict=True))


def test_pruned_model_is_refused_with_the_cure(pruned: nn.Module, dataset: nncf.Dataset) -> None:
    before = state_of(pruned)
    with pytest.raises(nncf.UnsupportedModelError, match=r"already carries NNCF's hooks.*\"bake_pruning\": true"):
        lowrank_nncf.create_compressed_model(pruned, {"compression": LOWRANK}, dataset)
    assert_same_state(pruned, before)


def test_stale_mask(pruned: nn.Module, images: Tensor, dataset: nncf.Dataset) -> None:
    """A pruned model decomposed without this host keeps a mask for a weight that is gone."""
    stale = lowrank_plugin.decompose(pruned, [images], ranks={"conv": 8}, decomposers=["svd"])
    del stale.lowrank_record
    before = state_of(stale)
    config = {"compression": LOWRANK, "bake_pruning": True}
    with pytest.raises(nncf.UnsupportedModelError, match=r"mask for 'conv.weight'.*no longer.*pruned model"):
        lowrank_nncf.create_compressed_model(stale, config, dataset)
    assert_same_state(stale, before)


def test_quantized_model_is_not_baked(model: nn.Module, dataset: nncf.Dataset) -> None:
    _, quantized = lowrank_nncf.create_compressed_model(model, {"compression": {"algorithm": "quantization"}}, dataset)
    with pytest.raises(nncf.UnsupportedModelError, match=r"before nncf.quantize"):
        lowrank_nncf.create_compressed_model(quantized, {"compression": LOWRANK, "bake_pruning": True}, dataset)


def test_pruned_part_of_a_model(images: Tensor, model: nn.Module) -> None:
    """Only the part is wrapped by NNCF, and its own forward is found again."""
    whole = nn.Sequential(pruned_by(MODES.UNSTRUCTURED_MAGNITUDE_LOCAL, model, images), nn.ReLU())
    baked = bake_pruning(whole)
    assert not any(is_wrapped(module) for module in baked.modules())
    with torch.no_grad():
        assert torch.equal(baked.eval()(images), whole.eval()(images))


def test_decomposed_model_is_not_decomposed_again(model: nn.Module, dataset: nncf.Dataset) -> None:
    _, compressed = lowrank_nncf.create_compressed_model(model, {"compression": LOWRANK}, dataset)
    with pytest.raises(nncf.UnsupportedModelError, match="already been decomposed"):
        lowrank_nncf.create_compressed_model(compressed, {"compression": LOWRANK}, dataset)
