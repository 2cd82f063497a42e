# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Each bad input gives one clear error, of NNCF's type, and leaves the model as it was."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import nncf.torch
import pytest
import torch
from nncf.torch.nncf_network import NNCFNetwork
from torch import nn

from lowrank_plugin.errors import ConfigurationError

LOWRANK = {"algorithm": "lowrank", "budget": {"macs": 0.5}}
SPARSITY = {"algorithm": "magnitude_sparsity"}

BAD_SECTIONS = {
    "typo in key": ({**LOWRANK, "rank_multipel": 8}, "'rank_multipel'.*Did you mean 'rank_multiple'"),
    "typo in a list": ([{**LOWRANK, "budgett": 1}, SPARSITY], "'budgett'.*Did you mean 'budget'"),
    "typo in algorithm": ([{**LOWRANK, "algorithm": "lowrnk"}], "'lowrnk'.*Did you mean 'lowrank'.*quantization"),
    "budget above 1": ({"algorithm": "lowrank", "budget": {"macs": 1.5}}, "1.5.*above 0 and at most 1"),
    "no budget": ([{"algorithm": "lowrank"}], 'Nothing to do: give a "budget"'),
    "wrong order": ([SPARSITY, LOWRANK], "in the order magnitude_sparsity, lowrank.*must be lowrank, magnitude_sp"),
    "twice": ([LOWRANK, LOWRANK], "'lowrank' appears 2 times"),
}


@pytest.mark.parametrize(("compression", "message"), BAD_SECTIONS.values(), ids=BAD_SECTIONS)
def test_bad_section(compression: Any, message: str) -> None:
    with pytest.raises(nncf.ValidationError, match=f"(?s){message}") as caught:
        nncf.NNCFConfig.from_dict({"compression": compression})
    assert isinstance(caught.value, ConfigurationError)
    assert "valid under any of the given schemas" not in str(caught.value)


@pytest.mark.parametrize("compression", [LOWRANK, [LOWRANK], [LOWRANK, SPARSITY]], ids=["alone", "listed", "several"])
def test_good_section(compression: Any) -> None:
    assert nncf.NNCFConfig.from_dict({"compression": compression})["compression"] == compression


def test_what_nncf_checks_is_left_to_it() -> None:
    for bad in ({"compression": 3}, {"compression": [3]}, {"compression": {**SPARSITY, "sparsity_init": "x"}}):
        with pytest.raises(Exception, match=r"schema|valid") as caught:
            nncf.NNCFConfig.from_dict(bad)
        assert type(caught.value).__module__.startswith("jsonschema")


def test_config_that_was_not_checked_before(model: nn.Module) -> None:
    config = nncf.NNCFConfig({"input_info": {"sample_size": [1, 3, 12, 12]}, "compression": [SPARSITY, LOWRANK]})
    with pytest.raises(nncf.ValidationError, match="must be lowrank, magnitude_sparsity"):
        nncf.torch.create_compressed_model(model, config, dump_graphs=False)


BAD_FOR_THE_MODEL = {
    "budget out of reach": ({"algorithm": "lowrank", "budget": {"macs": 0.01}}, {}, "cannot be met"),
    "unknown decomposer": ({**LOWRANK, "decomposers": ["tuker2"]}, {}, "Did you mean 'tucker2'"),
    "scope without a layer": ({**LOWRANK, "ignored_scopes": "convv"}, {}, "'convv'.*Did you mean 'conv'"),
    "no function": ({"algorithm": "lowrank", "budget": {"accuracy_drop": 0.1}}, {}, "model_eval_fn=function"),
    "norm without data": ({**LOWRANK, "norm": "covariance"}, {"data": False}, "register_default_init_args"),
}


@pytest.mark.parametrize(("section", "rest", "message"), BAD_FOR_THE_MODEL.values(), ids=BAD_FOR_THE_MODEL)
def test_model_is_left_as_it_was(
    section: Any, rest: dict[str, Any], message: str, model: nn.Module, compress: Callable[..., Any]
) -> None:
    def modules(model: nn.Module) -> dict[str, Any]:
        return {name: (type(module), module.training) for name, module in model.named_modules()}

    weights, before = copy.deepcopy(model.state_dict()), modules(model)
    with pytest.raises(nncf.ValidationError, match=f"(?s){message}"):
        compress(model, section, SPARSITY, **rest)
    assert not isinstance(model, NNCFNetwork)
    assert modules(model) == before
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in weights.items())
    # nothing of NNCF is left that would keep it from another attempt
    compress(model, LOWRANK)


def test_model_that_is_a_layer(compress: Callable[..., Any]) -> None:
    with pytest.raises(nncf.UnsupportedModelError, match=r"itself a layer.*module of your own"):
        compress(nn.Conv2d(3, 32, 3), {"algorithm": "lowrank", "ranks": {"": 4}, "decomposers": ["svd"]})


@pytest.mark.parametrize("first", ["nncf.torch", "lowrank_nncf"])
def test_tracing_is_switched_on_or_asked_for(first: str) -> None:
    state = "nncf.torch.dynamic_graph.patch_pytorch_state"
    code = f"import {first}, lowrank_nncf, {state} as state; print(state.PATCHING_STATE)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    traced = "operators_are_wrapped=True" in done.stdout
    asked = "Import lowrank_nncf before it" in done.stdout + done.stderr
    assert traced != asked
    assert traced or first == "nncf.torch"
