# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""NNCF 2's own function compresses with ``"lowrank"``, alone and before its other algorithms."""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Callable
from typing import Any

import nncf.torch
import pytest
import torch
from nncf.api.compression import CompressionStage
from nncf.torch.nncf_network import NNCFNetwork
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lowrank_plugin

LOWRANK = {"algorithm": "lowrank", "budget": {"macs": 0.5}}
BY_HAND = {"algorithm": "lowrank", "ranks": {"conv": 16}, "decomposers": ["svd"]}
SPARSITY = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.4}
PRUNING = {
    "algorithm": "filter_pruning",
    "pruning_init": 0.5,
    "params": {"schedule": "exponential", "pruning_target": 0.5, "prune_first_conv": True},
}
QUANTIZATION = {"algorithm": "quantization"}
SECTIONS = {
    "lowrank": [LOWRANK],
    "magnitude_sparsity": [LOWRANK, SPARSITY],
    "filter_pruning": [LOWRANK, PRUNING],
    "both": [LOWRANK, SPARSITY, PRUNING],
    "quantization": [LOWRANK, SPARSITY, QUANTIZATION],
    "pruned and quantized": [LOWRANK, PRUNING, QUANTIZATION],
}
COMPILED = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("c++"), reason="NNCF compiles its quantizers")]

Compress = Callable[..., tuple[Any, nn.Module]]


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(images)


def test_it_computes_what_the_core_computes(
    model: nn.Module, compress: Compress, images: Tensor, loader: DataLoader
) -> None:
    expected = lowrank_plugin.decompose(model, loader, budget={"macs": 0.5}, example_input=images[:1])
    _, compressed = compress(model, LOWRANK)
    assert torch.equal(outputs(compressed, images), outputs(expected, images))
    assert lowrank_plugin.report(compressed).to_dict()["layers"].keys() == {"stem", "block.0", "conv", "head"}


def test_the_model_is_compressed_in_place_and_keeps_its_type_and_modes(model: nn.Module, compress: Compress) -> None:
    kind = type(model)
    model.block.eval()
    model.stem.weight.requires_grad_(False)
    _, compressed = compress(model, BY_HAND)
    assert compressed is model
    assert isinstance(model, kind)
    assert isinstance(model, NNCFNetwork)
    assert [type(layer).__name__ for layer in model.conv] == ["NNCFConv2d", "NNCFConv2d"]
    assert model.conv.training
    assert not model.block.training
    assert not model.stem.weight.requires_grad
    assert all(parameter.requires_grad for parameter in model.conv.parameters())


@pytest.mark.parametrize(
    "sections",
    [pytest.param(each, id=name, marks=COMPILED if QUANTIZATION in each else ()) for name, each in SECTIONS.items()],
)
def test_combination(sections: list[Any], model: nn.Module, compress: Compress, fresh: Any, images: Tensor) -> None:
    controller, compressed = compress(model, *sections)
    # a step of training, as a pipeline of NNCF 2 does it
    controller.scheduler.epoch_step()
    controller.scheduler.step()
    optimizer = torch.optim.SGD(compressed.parameters(), lr=0.01)
    loss = compressed(images).square().mean() + controller.loss()
    loss.backward()
    optimizer.step()
    if sections == [LOWRANK]:
        assert controller.loss() == 0
        assert controller.compression_stage() == CompressionStage.FULLY_COMPRESSED
    text = controller.statistics().to_str()
    assert "Low-rank decomposition" in text
    for section in sections[1:]:
        assert section["algorithm"].replace("_", " ") in text.lower()
        assert getattr(controller.statistics(), section["algorithm"]) is not None
    assert controller.statistics().lowrank.to_dict()["model"]["macs"][1] > 0

    saved = io.BytesIO()
    state = json.loads(json.dumps(controller.get_compression_state()))
    torch.save({"state": state, "weights": compressed.state_dict()}, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    _, restored = compress(fresh(), *sections, state=loaded["state"])
    restored.load_state_dict(loaded["weights"])
    assert torch.equal(outputs(restored, images), outputs(compressed, images))

    stripped = controller.strip()
    assert stripped is not compressed
    difference = (outputs(stripped, images) - outputs(compressed, images)).abs()
    # torch's quantizers and NNCF's may round a tie to different sides, which moves one image by less than a step
    assert (difference > 1e-5).any(dim=1).float().mean() <= (0.05 if QUANTIZATION in sections else 0)
    assert difference.max() < 5e-3


def test_sparsity_acts_on_the_chains(model: nn.Module, compress: Compress) -> None:
    controller, _ = compress(model, BY_HAND, SPARSITY)
    stripped = controller.strip()
    shares = [float((layer.weight == 0).float().mean()) for layer in stripped.conv]
    assert all(0 < share < 1 for share in shares)


def test_filters_of_the_chains_are_pruned(model: nn.Module, compress: Compress) -> None:
    controller, _ = compress(model, BY_HAND, PRUNING)
    first, _ = controller.strip().conv
    zero = (first.weight.flatten(1) == 0).all(dim=1)  # NNCF leaves a multiple of 8
    assert int(zero.sum()) == first.out_channels // 2


def test_restoring_solves_nothing(
    model: nn.Module, compress: Compress, fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, _ = compress(model, LOWRANK)
    state = controller.get_compression_state()
    monkeypatch.delattr(lowrank_plugin, "decompose")
    # not even data is needed, and other ranks in the config do not matter
    again, restored = compress(fresh(), BY_HAND, data=False, state=state)
    assert again.statistics().to_str() == controller.statistics().to_str()
    assert again.get_compression_state() == state
    assert [tuple(p.shape) for p in restored.parameters()] == [tuple(p.shape) for p in model.parameters()]


def test_state_of_another_network(model: nn.Module, compress: Compress, fresh: Any) -> None:
    controller, _ = compress(model, BY_HAND)
    state = controller.get_compression_state()
    other = fresh()
    other.conv = nn.Conv2d(32, 32, 5, padding=2)
    with pytest.raises(nncf.ValidationError, match="'conv' with 9216 weights, but here it has 25600"):
        compress(other, BY_HAND, state=state)
    assert not isinstance(other, NNCFNetwork)


def test_without_data_in_the_plain_norm(model: nn.Module, compress: Compress, images: Tensor) -> None:
    expected = lowrank_plugin.decompose(copy.deepcopy(model), None, example_input=images[:1], ranks={"conv": 8})
    controller, compressed = compress(model, {"algorithm": "lowrank", "ranks": {"conv": 8}}, data=False)
    assert controller.statistics().lowrank.to_dict()["norm"] == "frobenius"
    assert torch.equal(outputs(compressed, images), outputs(expected, images))


def test_example_input_from_the_data(model: nn.Module, loader: DataLoader) -> None:
    config = nncf.torch.register_default_init_args(nncf.NNCFConfig.from_dict({"compression": BY_HAND}), loader)
    controller, _ = nncf.torch.create_compressed_model(model, config, dump_graphs=False)
    assert controller.statistics().lowrank.to_dict()["norm"] == "covariance"


def test_an_accuracy_drop_is_kept(model: nn.Module, loader: DataLoader, images: Tensor) -> None:
    wanted = outputs(copy.deepcopy(model), images).argmax(dim=1)

    def agreement(model: nn.Module) -> float:
        return float((model(images).argmax(dim=1) == wanted).float().mean())

    config = nncf.NNCFConfig.from_dict({"compression": {"algorithm": "lowrank", "budget": {"accuracy_drop": 0.1}}})
    nncf.torch.register_default_init_args(config, loader, model_eval_fn=agreement)
    _, compressed = nncf.torch.create_compressed_model(model, config, dump_graphs=False)
    with torch.no_grad():
        assert agreement(compressed.eval()) >= 0.9
    macs = lowrank_plugin.report(compressed).to_dict()["model"]["macs"]
    assert macs[1] < macs[0]


def test_model_with_a_forward_of_its_own_for_tracing() -> None:
    class TakesDictionary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 32)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.layer(batch["x"])

    class Loader(nncf.torch.initialization.PTInitializingDataLoader):
        def get_inputs(self, item: Any) -> Any:
            return (item,), {}

    def wrap_inputs(args: Any, kwargs: Any) -> Any:
        return ({"x": nncf.torch.nncf_model_input(args[0]["x"])},), kwargs

    def dummy_forward(model: nn.Module) -> Any:
        return model({"x": nncf.torch.nncf_model_input(torch.zeros(1, 32))})

    section = {"algorithm": "lowrank", "ranks": {"layer": 8}}
    config = nncf.NNCFConfig.from_dict({"input_info": {"sample_size": [1, 32]}, "compression": [section, SPARSITY]})
    nncf.torch.register_default_init_args(config, Loader([{"x": torch.randn(16, 32)} for _ in range(4)]))
    controller, compressed = nncf.torch.create_compressed_model(
        TakesDictionary(), config, dummy_forward_fn=dummy_forward, wrap_inputs_fn=wrap_inputs, dump_graphs=False
    )
    assert controller.statistics().lowrank.to_dict()["norm"] == "covariance"
    assert compressed({"x": torch.randn(2, 32)}).shape == (2, 32)


def test_loader_with_arguments_of_both_kinds() -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 32)

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return self.layer(x) + shift

    class Loader(nncf.torch.initialization.PTInitializingDataLoader):
        def get_inputs(self, item: Any) -> Any:
            return (item["x"],), {"shift": item["shift"]}

    batches = [{"x": torch.randn(16, 32), "shift": torch.zeros(1, 32)} for _ in range(4)]
    config = nncf.NNCFConfig.from_dict({"compression": {"algorithm": "lowrank", "ranks": {"layer": 8}}})
    nncf.torch.register_default_init_args(config, Loader(batches))
    controller, compressed = nncf.torch.create_compressed_model(TwoInputs(), config, dump_graphs=False)
    assert [layer.out_features for layer in compressed.layer] == [8, 32]
    assert controller.statistics().lowrank.to_dict()["norm"] == "covariance"


@pytest.mark.parametrize(
    "scopes",
    [
        {"ignored_scopes": ["conv", "head"]},
        {"ignored_scopes": ["{re}^conv$", "head"]},
        {"ignored_scopes": ["SmallNet/NNCFConv2d[conv]/conv2d_0", "{re}NNCFLinear"]},
        {"target_scopes": ["stem", "block"]},
        {"target_scopes": ["SmallNet/NNCFConv2d[stem]/conv2d_0", "{re}Sequential.block."]},
    ],
    ids=["names", "pattern", "scopes of NNCF", "targets", "targets of NNCF"],
)
def test_scopes_of_the_section(scopes: dict[str, Any], model: nn.Module, compress: Compress) -> None:
    section = {"algorithm": "lowrank", "budget": {"parameters": 0.8}, **scopes}
    report = compress(model, section)[0].statistics().lowrank.to_dict()
    assert report["layers"].keys() == {"stem", "block.0"}


def test_scopes_of_the_config_hold_for_all_and_those_of_a_section_for_it_alone(
    model: nn.Module, compress: Compress
) -> None:
    lowrank = {**BY_HAND, "ignored_scopes": "head"}
    sparsity = {**SPARSITY, "ignored_scopes": ["SmallNet/Sequential[conv]/NNCFConv2d[1]/conv2d_0"]}
    controller, compressed = compress(model, lowrank, sparsity, ignored_scopes=["SmallNet/NNCFConv2d[stem]/conv2d_0"])
    assert controller.statistics().lowrank.to_dict()["skipped"] == {
        "stem": "in the ignored scopes",
        "head": "in the ignored scopes",
    }
    sparse = {name for name, module in compressed.named_modules() if getattr(module, "pre_ops", None)}
    assert sparse == {"block.0", "conv.0", "head"}


def test_target_scopes_of_the_config(model: nn.Module, compress: Compress) -> None:
    controller, compressed = compress(model, BY_HAND, SPARSITY, target_scopes=[r"{re}\[conv\]"])
    assert controller.statistics().lowrank.to_dict()["layers"].keys() == {"conv"}
    sparse = {name for name, module in compressed.named_modules() if getattr(module, "pre_ops", None)}
    assert sparse == {"conv.0", "conv.1"}
