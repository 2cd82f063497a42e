# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Pruning from a config, after a decomposition and before quantization; its schedules against those of NNCF 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nncf
import pytest
import torch
from torch import Tensor, nn
from untouched import assert_same_state, state_of

import lowrank_nncf
from lowrank_nncf.nncf3.algorithms.schedules import schedule_of

LOWRANK = {"algorithm": "lowrank", "ranks": {"conv": 16}, "decomposers": ["svd"]}
MAGNITUDE = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5}
LOCAL = {**MAGNITUDE, "params": {"sparsity_level_setting_mode": "local", "weight_importance": "abs"}}
RB = {"algorithm": "rb_sparsity"}
QUANTIZATION = {"algorithm": "quantization"}


def compress(
    model: nn.Module, dataset: nncf.Dataset | None, *sections: dict[str, Any], **rest: Any
) -> tuple[lowrank_nncf.CompressionController, nn.Module]:
    return lowrank_nncf.create_compressed_model(model, {"compression": list(sections), **rest}, dataset)


@pytest.mark.parametrize("section", [MAGNITUDE, LOCAL, RB], ids=["global", "local", "rb"])
def test_pruning_of_a_copy(section: dict[str, Any], model: nn.Module, dataset: nncf.Dataset) -> None:
    model.norm.eval()
    before = state_of(model)
    controller, pruned = compress(model, dataset, section)
    assert_same_state(model, before)
    assert pruned.training
    assert not pruned.norm.training
    found = controller.statistics().pruning
    assert found is not None
    assert sorted(found.tensors) == ["conv.weight", "head.weight", "stem.weight"]
    assert found.sparsity == pytest.approx(0.0 if section is RB else 0.5, abs=0.002)
    if section is LOCAL:
        assert list(found.tensors.values()) == pytest.approx([0.5] * 3, abs=0.01)


def test_chains_are_pruned_and_quantized(model: nn.Module, images: Tensor, dataset: nncf.Dataset) -> None:
    controller, compressed = compress(model, dataset, LOWRANK, MAGNITUDE, QUANTIZATION)
    statistics = controller.statistics()
    assert statistics.pruning is not None
    assert statistics.quantization is not None
    assert set(statistics.pruning.tensors) == {"conv.0.weight", "conv.1.weight", "head.weight", "stem.weight"}
    assert statistics.quantization.quantized_layers == 4
    assert "Pruning by magnitude_sparsity: 50.0% of the weights of 4 layers" in statistics.to_str()
    assert statistics.to_dict()["pruning"]["sparsity"] == statistics.pruning.sparsity
    with torch.no_grad():
        assert torch.isfinite(compressed.eval()(images)).all()


@pytest.mark.parametrize("key", ["ignored_scopes", "target_scopes"])
def test_scopes(key: str, model: nn.Module, dataset: nncf.Dataset) -> None:
    controller, _ = compress(model, dataset, {**MAGNITUDE, key: "conv"})
    found = controller.statistics().pruning
    assert found is not None
    assert set(found.tensors) == ({"conv.weight"} if key == "target_scopes" else {"head.weight", "stem.weight"})


def test_scopes_that_match_nothing(model: nn.Module, dataset: nncf.Dataset) -> None:
    with pytest.raises(nncf.ValidationError, match=r"'convv'.*Did you mean 'conv'"):
        compress(model, dataset, {**MAGNITUDE, "ignored_scopes": "convv"})
    controller, _ = compress(model, dataset, {**MAGNITUDE, "ignored_scopes": "convv", "validate_scopes": False})
    assert len(controller.statistics().pruning.tensors) == 3
    with pytest.raises(nncf.ValidationError, match="found no weights to prune"):
        compress(model, dataset, {**MAGNITUDE, "ignored_scopes": "{re}."})


def test_without_data_from_input_info(model: nn.Module) -> None:
    controller, _ = compress(model, None, MAGNITUDE, input_info={"sample_size": [1, 3, 12, 12]})
    assert controller.statistics().pruning.sparsity == pytest.approx(0.5, abs=0.002)
    with pytest.raises(nncf.ValidationError, match="Give 'input_info'"):
        compress(model, None, MAGNITUDE)


def test_batch_norm_adaptation_moves_only_the_statistics(model: nn.Module, dataset: nncf.Dataset) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adaptation = {"batchnorm_adaptation": {"num_bn_adaptation_samples": 8}}
    _, plain = compress(model, dataset, MAGNITUDE)
    _, adapted = compress(model, dataset, {**MAGNITUDE, "initializer": adaptation})
    assert torch.equal(plain.norm.running_mean, before["norm.running_mean"])
    assert not torch.equal(adapted.norm.running_mean, before["norm.running_mean"])
    assert torch.equal(adapted.conv.weight, before["conv.weight"])
    assert adapted.norm.num_batches_tracked - before["norm.num_batches_tracked"] == 8
    _, quantized = compress(model, dataset, {**QUANTIZATION, "initializer": adaptation})
    assert quantized.norm.num_batches_tracked - before["norm.num_batches_tracked"] == 8


@pytest.mark.parametrize("section", [MAGNITUDE, QUANTIZATION], ids=["pruning", "quantization"])
def test_adaptation_of_folded_normalisation(section: dict[str, Any], model: nn.Module, dataset: nncf.Dataset) -> None:
    model.norm.reset_running_stats()
    before = state_of(model)
    with pytest.raises(nncf.ValidationError, match=r"'norm'.*1 of 1.*folded"):
        compress(model, dataset, {**section, "initializer": {"batchnorm_adaptation": {}}})
    assert_same_state(model, before)
    off = {"batchnorm_adaptation": {"num_bn_adaptation_samples": 0}}
    compress(model, dataset, {**section, "initializer": off})


@pytest.mark.parametrize("section", [MAGNITUDE, RB], ids=["magnitude", "rb"])
def test_sequential_cannot_be_pruned(section: dict[str, Any], dataset: nncf.Dataset) -> None:
    with pytest.raises(nncf.ValidationError, match=r"nn.Sequential.*module of your own"):
        compress(nn.Sequential(nn.Conv2d(3, 4, 3)), dataset, section)


@dataclass
class BadSection:
    name: str
    section: dict[str, Any]
    message: str

    def __str__(self) -> str:
        return self.name


def _params(**params: Any) -> dict[str, Any]:
    return {**MAGNITUDE, "params": params}


BAD_SECTIONS = [
    BadSection("level above 1", {**MAGNITUDE, "sparsity_init": 1.5}, "1.5.*number from 0, below 1"),
    BadSection("level below 0", {**MAGNITUDE, "sparsity_init": -0.5}, "-0.5.*number from 0, below 1"),
    BadSection("adaptive", _params(schedule="adaptive"), "'polynomial', 'exponential', 'multistep'"),
    BadSection("falling", _params(sparsity_target=0.2), "0.2, below 'sparsity_init', 0.5"),
    BadSection("levels", _params(schedule="multistep", multistep_sparsity_levels=[0.5]), "1 levels for 1.*one more"),
    BadSection(
        "first level", _params(schedule="multistep", multistep_sparsity_levels=[0.2, 0.6]), "0.5.*first.*0.2.*Leave"
    ),
    BadSection("steps", _params(sparsity_target=0.8, update_per_optimizer_step=True), "needs 'steps_per_epoch'"),
    BadSection("importance", _params(weight_importance="abs"), "'normed_abs' only.*'local'"),
    BadSection("local rb", {**RB, "params": {"sparsity_level_setting_mode": "local"}}, "'local'.*expected 'global'"),
    BadSection("multiplier", {**RB, "compression_lr_multiplier": 2}, "'compression_lr_multiplier'.*optimizer"),
    BadSection("typo", {**MAGNITUDE, "sparsity_inti": 0.5}, "'sparsity_inti'.*Did you mean 'sparsity_init'"),
]


@pytest.mark.parametrize("case", BAD_SECTIONS, ids=str)
def test_bad_section(case: BadSection, model: nn.Module, dataset: nncf.Dataset) -> None:
    before = state_of(model)
    with pytest.raises(nncf.ValidationError, match=f"(?s){case.message}"):
        compress(model, dataset, case.section)
    assert_same_state(model, before)


POLYNOMIAL = {"sparsity_target": 0.8, "sparsity_target_epoch": 4}


@pytest.mark.parametrize(
    ("params", "kind", "levels"),
    [
        # by the formulas of NNCF 2.19, nncf/common/schedulers.py
        (POLYNOMIAL, "polynomial", [0.2, 0.2 + 0.6 * (1 - 0.75**0.9), 0.2 + 0.6 * (1 - 0.5**0.9)]),
        ({**POLYNOMIAL, "concave": False, "power": 2}, "polynomial", [0.2, 0.2 + 0.6 / 16, 0.2 + 0.6 / 4]),
        (POLYNOMIAL, "exponential", [0.2, 1 - 0.8 * 0.25**0.25, 1 - 0.8 * 0.25**0.5]),
        ({**POLYNOMIAL, "sparsity_target_epoch": 0}, "exponential", [0.8, 0.8, 0.8]),
        ({"sparsity_level_setting_mode": "local"}, "polynomial", [0.2, 0.2, 0.2]),
    ],
    ids=["concave", "convex", "exponential", "at once", "local"],
)
def test_schedules(params: dict[str, Any], kind: str, levels: list[float]) -> None:
    schedule = schedule_of({"sparsity_init": 0.2, "params": params}, kind)
    assert schedule.initial == 0.2
    assert [schedule.level(epoch) for epoch in range(3)] == pytest.approx(levels)
    assert schedule.level(100) == pytest.approx(schedule.target)
