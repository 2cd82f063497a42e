# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Each bad input gives one clear error, of NNCF's type, and leaves the model as it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import nncf
import pytest
import torch
from torch import Tensor, nn
from untouched import assert_same_state, state_of

import lowrank_nncf
from lowrank_plugin.errors import ConfigurationError

LOWRANK = {"algorithm": "lowrank", "budget": {"macs": 0.5}}
QUANTIZATION = {"algorithm": "quantization"}
MAGNITUDE = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5}


@dataclass
class BadConfig:
    name: str
    compression: Any
    message: str
    rest: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


BAD_CONFIGS = [
    BadConfig("typo in key", {**LOWRANK, "rank_multipel": 8}, "'rank_multipel'.*Did you mean 'rank_multiple'"),
    BadConfig("typo in top-level key", LOWRANK, "'input_inf'.*Did you mean 'input_info'", {"input_inf": {}}),
    BadConfig("typo in quantization", {**QUANTIZATION, "presett": "mixed"}, "'presett'.*Did you mean 'preset'"),
    BadConfig("unknown value", {**QUANTIZATION, "preset": "fast"}, "'fast'.*preset.*'performance' or 'mixed'"),
    BadConfig("unknown algorithm", {"algorithm": "lowrnk"}, "'lowrnk'.*Did you mean 'lowrank'.*quantization"),
    BadConfig("no algorithm", {"budget": {"macs": 0.5}}, "Missing key 'algorithm'.*lowrank, magnitude_sparsity"),
    BadConfig("removed algorithm", {"algorithm": "filter_pruning"}, "NNCF 3 no longer has it.*'lowrank'"),
    BadConfig("algorithm elsewhere", {"algorithm": "movement_sparsity"}, "NNCF 3 no longer has it.*'rb_sparsity'"),
    BadConfig("key elsewhere", {**QUANTIZATION, "quantize_inputs": False}, "'quantize_inputs'.*ignored_scopes"),
    BadConfig("range elsewhere", {**QUANTIZATION, "initializer": {"range": {"type": "threesigma"}}}, "'min_max'"),
    BadConfig("asymmetric", {**QUANTIZATION, "weights": {"mode": "asymmetric"}}, "'overflow_fix' to 'disable'"),
    BadConfig("bits", {**QUANTIZATION, "weights": {"bits": 4}}, "4 .*bits.*8, the only width"),
    BadConfig("wrong order", [QUANTIZATION, LOWRANK], "order must be lowrank, quantization"),
    BadConfig("pruning too late", [QUANTIZATION, MAGNITUDE], "order must be magnitude_sparsity, quantization"),
    BadConfig("pruning too early", [MAGNITUDE, LOWRANK], "order must be lowrank, magnitude_sparsity"),
    BadConfig("both prunings", [MAGNITUDE, {"algorithm": "rb_sparsity"}], "both prune.*Choose one"),
    BadConfig("twice", [LOWRANK, LOWRANK], "'lowrank' appears 2 times"),
    BadConfig("quantized twice", [QUANTIZATION, QUANTIZATION], "'quantization' appears 2 times"),
    BadConfig("no section", [], "no compression section"),
    BadConfig("section of a wrong type", ["lowrank"], "'lowrank'.*expected a dictionary"),
    BadConfig("budget of 0", {"algorithm": "lowrank", "budget": {"macs": 0}}, "above 0 and at most 1"),
    BadConfig("budget above 1", {"algorithm": "lowrank", "budget": {"macs": 1.5}}, "1.5.*above 0 and at most 1"),
    BadConfig("budget out of reach", {"algorithm": "lowrank", "budget": {"macs": 0.01}}, "cannot be met"),
    BadConfig("drop without a judge", {"algorithm": "lowrank", "budget": {"accuracy_drop": 0.1}}, "validation_fn"),
    BadConfig("no budget", {"algorithm": "lowrank"}, "budget"),
    BadConfig("unknown decomposer", {**LOWRANK, "decomposers": ["tuker2"]}, "Did you mean 'tucker2'"),
    BadConfig("scope without a layer", {**LOWRANK, "ignored_scopes": "convv"}, "'convv'.*'conv'"),
    BadConfig("scope without an operation", {**QUANTIZATION, "ignored_scopes": ["convv"]}, "'convv'.*'conv'"),
    BadConfig("sample of a wrong type", LOWRANK, "sample_size.*positive integers", {"input_info": {"sample_size": 3}}),
    BadConfig("sample without a size", LOWRANK, "Missing key 'sample_size'", {"input_info": {"type": "float"}}),
    BadConfig(
        "keywords for some inputs",
        LOWRANK,
        "keyword for every input or for none",
        {"input_info": [{"sample_size": [1], "keyword": "x"}, {"sample_size": [1]}]},
    ),
]


@pytest.mark.parametrize("case", BAD_CONFIGS, ids=str)
def test_bad_config(case: BadConfig, model: nn.Module, dataset: nncf.Dataset) -> None:
    before = state_of(model)
    with pytest.raises(nncf.ValidationError, match=f"(?s){case.message}"):
        lowrank_nncf.create_compressed_model(model, {"compression": case.compression, **case.rest}, dataset)
    assert_same_state(model, before)


def test_errors_are_also_the_core_errors(model: nn.Module, dataset: nncf.Dataset) -> None:
    with pytest.raises(ConfigurationError):
        lowrank_nncf.create_compressed_model(model, {"compression": {"algorithm": "x"}}, dataset)


@pytest.mark.parametrize("section", [LOWRANK, QUANTIZATION], ids=["lowrank", "quantization"])
def test_missing_dataset(section: dict[str, Any], model: nn.Module) -> None:
    with pytest.raises(nncf.ValidationError, match=r"nncf.Dataset"):
        lowrank_nncf.create_compressed_model(model, {"compression": section})


@pytest.mark.parametrize("section", [LOWRANK, QUANTIZATION], ids=["lowrank", "quantization"])
def test_empty_dataset(section: dict[str, Any], model: nn.Module) -> None:
    before = state_of(model)
    with pytest.raises(nncf.ValidationError, match=r"(?i)empty"):
        lowrank_nncf.create_compressed_model(model, {"compression": section}, nncf.Dataset([]))
    assert_same_state(model, before)


def test_dataset_of_another_type(model: nn.Module, images: Tensor) -> None:
    with pytest.raises(nncf.ValidationError, match=r"Expected the dataset to be an nncf.Dataset, got list"):
        lowrank_nncf.create_compressed_model(model, {"compression": LOWRANK}, [images])  # type: ignore[arg-type]


def test_batch_that_the_model_cannot_take(model: nn.Module) -> None:
    before = state_of(model)
    with pytest.raises(nncf.ValidationError):
        lowrank_nncf.create_compressed_model(model, {"compression": LOWRANK}, nncf.Dataset([torch.ones(2, 5, 8, 8)]))
    assert_same_state(model, before)


@pytest.mark.parametrize("section", [LOWRANK, QUANTIZATION], ids=["lowrank", "quantization"])
def test_model_that_is_already_quantized(section: dict[str, Any], model: nn.Module, dataset: nncf.Dataset) -> None:
    _, quantized = lowrank_nncf.create_compressed_model(model, {"compression": QUANTIZATION}, dataset)
    with pytest.raises(nncf.UnsupportedModelError, match=r"already carries NNCF's hooks.*before nncf.quantize"):
        lowrank_nncf.create_compressed_model(quantized, {"compression": section}, dataset)


def test_sequential_cannot_be_quantized(images: Tensor, dataset: nncf.Dataset) -> None:
    with pytest.raises(nncf.ValidationError, match=r"nn.Sequential.*module of your own"):
        lowrank_nncf.create_compressed_model(nn.Sequential(nn.Conv2d(3, 4, 3)), {"compression": QUANTIZATION}, dataset)


@pytest.mark.parametrize("wrap", [iter, lambda batches: (each for each in batches)], ids=["iterator", "generator"])
@pytest.mark.parametrize("second", [QUANTIZATION, MAGNITUDE], ids=["quantization", "sparsity"])
def test_data_that_can_be_read_once_are_found_out_before_anything_is_solved(
    wrap: Any, second: dict[str, Any], model: nn.Module
) -> None:
    taken: list[Tensor] = []
    source = wrap([torch.rand(4, 3, 8, 8)] * 4)
    dataset = nncf.Dataset(source, lambda item: (taken.append(item), item)[1])
    with pytest.raises(nncf.ValidationError, match="can be gone through only once; give a list or a DataLoader"):
        lowrank_nncf.create_compressed_model(model, {"compression": [LOWRANK, second]}, dataset)
    assert not taken
