# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Save and restore: bit-equal outputs, nothing solved, and every state that cannot be restored."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import nncf
import pytest
import torch
from sections import LOWRANK, SECTIONS, compress
from torch import Tensor, nn
from untouched import assert_same_state, state_of

import lowrank_nncf
import lowrank_plugin
from lowrank_hooks import CompressionAlgorithmRecord, hookimpl
from lowrank_plugin import plugins
from lowrank_plugin.errors import PluginError
from lowrank_plugin.plugins import DECOMPOSERS, manager

COMBINATIONS = [
    names for count in range(1, 4) for names in combinations(SECTIONS, count) if not {"magnitude", "rb"} <= set(names)
]
RANKS = {"tucker2": 2, "tensorly:partial_tucker": 2, "tucker2_spatial": 3, "tucker2_cpd": 3}


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(images)


@pytest.fixture
def unsolvable(state: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A state, in a place where decomposers fail when they are asked to solve."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a restore must not solve")

    for entry in manager().registered(DECOMPOSERS).values():
        for method in ("fit", "curve"):
            monkeypatch.setattr(type(entry.record.decomposer), method, refuse)
    return state


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_round_trip_is_bit_equal(
    names: tuple[str, ...], model: nn.Module, images: Tensor, dataset: nncf.Dataset, fresh: nn.Module, tmp_path: Path
) -> None:
    controller, compressed = compress(model, dataset, *names)
    state = controller.get_compression_state()
    assert json.loads(json.dumps(state)) == state

    file = io.BytesIO()
    torch.save({"state": state, "weights": compressed.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    before = state_of(fresh)
    restored = lowrank_nncf.load_from_state(fresh, saved["state"])
    restored.load_state_dict(saved["weights"])
    assert_same_state(fresh, before)
    assert torch.equal(outputs(restored, images), outputs(compressed, images))
    assert not any(module.training for module in restored.modules())

    path = tmp_path / "model.safetensors"
    lowrank_nncf.save(path, controller)
    again, loaded = lowrank_nncf.load(path, fresh)
    assert torch.equal(outputs(loaded, images), outputs(compressed, images))
    assert again.statistics().to_str() == controller.statistics().to_str()
    assert again.get_compression_state() == state
    assert [child.name for child in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("decomposer", list(manager().registered(DECOMPOSERS)))
def test_every_decomposer(
    decomposer: str, model: nn.Module, images: Tensor, dataset: nncf.Dataset, fresh: nn.Module, tmp_path: Path
) -> None:
    section = {"algorithm": "lowrank", "ranks": {"conv": [8] * RANKS.get(decomposer, 1)}, "decomposers": [decomposer]}
    controller, compressed = lowrank_nncf.create_compressed_model(model, {"compression": section}, dataset)
    lowrank_nncf.save(tmp_path / "model.safetensors", controller)
    _, loaded = lowrank_nncf.load(tmp_path / "model.safetensors", fresh)
    assert torch.equal(outputs(loaded, images), outputs(compressed, images))


def test_nothing_is_solved(unsolvable: dict[str, Any], fresh: nn.Module) -> None:
    assert isinstance(lowrank_nncf.load_from_state(fresh, unsolvable).conv, nn.Sequential)


def test_names_are_stable(model: nn.Module, dataset: nncf.Dataset) -> None:
    """A chain's layers are numbered in its place; hooks are named by NNCF after the operations."""
    _, compressed = compress(model, dataset, "lowrank", "magnitude", "quantization")
    names = set(compressed.state_dict())
    assert {"conv.0.weight", "conv.1.weight", "head.0.weight", "head.1.weight", "head.1.bias", "stem.weight"} <= names
    assert "__nncf_hooks.post_hooks.conv:0:weight__0.0.binary_mask" in names
    assert "__nncf_hooks.pre_hooks.conv/0/conv2d/0__1.0.enabled" in names


def test_state_of_an_earlier_version(fresh: nn.Module) -> None:
    """The first states ever written can still be restored, and their weights have the same names and shapes."""
    saved = json.loads((Path(__file__).parent / "states" / "format_1.json").read_text())
    restored = lowrank_nncf.load_from_state(fresh, saved["state"])
    assert {name: list(value.shape) for name, value in restored.state_dict().items()} == saved["names"]


def test_two_configs_give_one_state(model: nn.Module, images: Tensor, dataset: nncf.Dataset, fresh: nn.Module) -> None:
    _, first = compress(model, dataset, "lowrank")
    controller, second = compress(first, dataset, "quantization")
    state = controller.get_compression_state()
    assert [each["name"] for each in state["algorithms"]] == ["lowrank", "quantization"]
    restored = lowrank_nncf.load_from_state(fresh, state)
    restored.load_state_dict(second.state_dict())
    assert torch.equal(outputs(restored, images), outputs(second, images))


def test_decomposed_without_the_host(model: nn.Module, images: Tensor, dataset: nncf.Dataset, fresh: nn.Module) -> None:
    small = lowrank_plugin.decompose(model, [images], ranks={"conv": 8}, decomposers=["svd"])
    controller, compressed = compress(small, dataset, "quantization")
    restored = lowrank_nncf.load_from_state(fresh, controller.get_compression_state())
    restored.load_state_dict(compressed.state_dict())
    assert torch.equal(outputs(restored, images), outputs(compressed, images))


def test_baked_model(model: nn.Module, images: Tensor, dataset: nncf.Dataset, fresh: nn.Module, tmp_path: Path) -> None:
    mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL
    pruned = nncf.prune(copy.deepcopy(model), mode, ratio=0.5, examples_inputs=images[:1])
    config = {"compression": SECTIONS["lowrank"], "bake_pruning": True}
    controller, compressed = lowrank_nncf.create_compressed_model(pruned, config, dataset)
    lowrank_nncf.save(tmp_path / "model.safetensors", controller)
    _, loaded = lowrank_nncf.load(tmp_path / "model.safetensors", fresh)
    assert torch.equal(outputs(loaded, images), outputs(compressed, images))


def test_tied_weights(dataset: nncf.Dataset, images: Tensor, tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
            self.second.weight = self.first.weight
            self.last = nn.Conv2d(3, 32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.second(self.first(x)))

    section = {"algorithm": "lowrank", "ranks": {"last": 2}, "decomposers": ["svd"]}
    controller, compressed = lowrank_nncf.create_compressed_model(Tied(), {"compression": section}, dataset)
    lowrank_nncf.save(tmp_path / "model.safetensors", controller)
    _, loaded = lowrank_nncf.load(tmp_path / "model.safetensors", Tied())
    assert loaded.first.weight is loaded.second.weight
    assert torch.equal(outputs(loaded, images), outputs(compressed, images))


# A third party whose algorithm changes the structure of a network.


def _widen(model: nn.Module, section: Any, context: Any) -> tuple[nn.Module, Any]:
    return _widened(model, {"outputs": section["outputs"]}), {"outputs": section["outputs"]}


def _widened(model: nn.Module, statistics: Any) -> nn.Module:
    wide = copy.deepcopy(model)
    wide.tail = nn.Linear(10, statistics["outputs"])
    wide.norm.register_buffer("wide", torch.ones(statistics["outputs"]))
    return wide


@pytest.fixture
def widening() -> Iterator[Callable[[], None]]:
    """A plugin registered by hand; call it to uninstall."""

    class Plugin:
        @hookimpl
        def lowrank_compression_algorithms(self) -> Iterator[CompressionAlgorithmRecord]:
            yield CompressionAlgorithmRecord("widen", _widen, after=frozenset({"lowrank"}), restore=_widened)

    made = Plugin()
    manager().register(made, "widening-party")

    def uninstall() -> None:
        if manager().is_registered(made):
            manager().unregister(made)

    yield uninstall
    uninstall()


def test_structure_of_a_third_party(
    model: nn.Module, images: Tensor, dataset: nncf.Dataset, fresh: nn.Module, widening: Callable[[], None]
) -> None:
    config = {"compression": [LOWRANK, {"algorithm": "widen", "outputs": 3}]}
    controller, compressed = lowrank_nncf.create_compressed_model(model, config, dataset)
    state = controller.get_compression_state()
    restored = lowrank_nncf.load_from_state(fresh, state)
    restored.load_state_dict(compressed.state_dict())
    assert torch.equal(restored.tail.weight, compressed.tail.weight)
    widening()
    with pytest.raises(PluginError, match="'widen' of widening-party, which is not installed"):
        lowrank_nncf.load_from_state(fresh, state)


_states: list[dict[str, Any]] = []


@pytest.fixture
def state(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Of a model compressed three times over; made once."""
    if not _states:
        model, dataset = request.getfixturevalue("model"), request.getfixturevalue("dataset")
        controller, _ = compress(model, dataset, "lowrank", "magnitude", "quantization")
        _states.append(controller.get_compression_state())
    return copy.deepcopy(_states[0])


def _first_hook(state: dict[str, Any]) -> dict[str, Any]:
    return state["nncf"]["compression_state"][0]


BAD_STATES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "newer": (lambda s: s.update(format=2), "2 .*format.*install a newer one"),
    "newer core": (lambda s: s["lowrank"].update(format=2), "2 .*install a newer one"),
    "no format": (lambda s: s.pop("format"), "format"),
    "cut": (lambda s: s.pop("nncf"), "nncf"),
    "foreign module": (lambda s: _first_hook(s).update(module_path="os"), "'os'.*module of NNCF itself"),
    "alike module": (lambda s: _first_hook(s).update(module_path="nncfx.y"), "'nncfx.y'.*module of NNCF itself"),
    "class": (lambda s: _first_hook(s).update(module_cls_name="Gone"), r"NNCF 3\..* cannot restore.*Gone.*damaged"),
    "no hook": (lambda s: _first_hook(s).update(hook_names_in_model=["x"]), "damaged.*'x'"),
    "hook elsewhere": (
        lambda s: _first_hook(s).update(hook_names_in_model=["post_hooks.convv:weight__0.0"]),
        "'convv.weight'.*no module 'convv'.*Did you mean 'conv'.*another network",
    ),
    "algorithms": (lambda s: s["algorithms"].pop(), "damaged: its config and its list of algorithms"),
    "no layers": (lambda s: s.update(lowrank=None), "damaged: 'lowrank' was applied"),
    "layer": (
        lambda s: s["lowrank"]["record"]["layers"].update(gone={"decomposer": "svd"}),
        "'rank' is a required property",
    ),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_states_that_cannot_be_restored(case: str, state: dict[str, Any], fresh: nn.Module) -> None:
    edit, message = BAD_STATES[case]
    edit(state)
    before = state_of(fresh)
    with pytest.raises(nncf.ValidationError, match=f"(?s){message}"):
        lowrank_nncf.load_from_state(fresh, state)
    assert_same_state(fresh, before)


@pytest.mark.parametrize("value", [None, [], "text", {}], ids=repr)
def test_what_is_no_state(value: Any, fresh: nn.Module) -> None:
    with pytest.raises(nncf.ValidationError, match="the state"):
        lowrank_nncf.load_from_state(fresh, value)


def test_missing_plugin(state: dict[str, Any], fresh: nn.Module) -> None:
    layer = state["lowrank"]["record"]["layers"]["conv"]
    layer.update(decomposer="gone", plugins={"decomposer": "lost-party"})
    with pytest.raises(PluginError, match="'gone' of lost-party"):
        lowrank_nncf.load_from_state(fresh, state)
    assert state["algorithms"][0]["distribution"] == plugins.OWN_DISTRIBUTION


def test_compressed_model_is_not_fresh(state: dict[str, Any], model: nn.Module, dataset: nncf.Dataset) -> None:
    _, decomposed = compress(model, dataset, "lowrank")
    with pytest.raises(nncf.UnsupportedModelError, match=r"already decomposed.*fresh"):
        lowrank_nncf.load_from_state(decomposed, state)
    _, quantized = compress(model, dataset, "quantization")
    with pytest.raises(nncf.UnsupportedModelError, match="already carries NNCF's hooks"):
        lowrank_nncf.load_from_state(quantized, state)


def test_config_of_another_model(state: dict[str, Any], fresh: nn.Module) -> None:
    with pytest.raises(nncf.ValidationError, match=r"names lowrank, but .* by lowrank, magnitude_sparsity, quant"):
        lowrank_nncf.create_compressed_model(fresh, {"compression": LOWRANK}, compression_state=state)
