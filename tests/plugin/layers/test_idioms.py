# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Networks as people write them: every module that holds a weight is a layer or is named with a true reason."""

from __future__ import annotations

import pytest
import torch
from plugin.layers.foreign import Product
from torch import fx, nn
from torch.nn.utils import parametrizations, prune

import lowrank_plugin
from lowrank_plugin.errors import BudgetError, ConfigurationError
from lowrank_plugin.layers.survey import Survey, survey
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
from lowrank_plugin.settings import Settings

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
HALF = {"budget": {"macs": 0.5}, "rank_multiple": 1}


def look(model: nn.Module, example=X, **section) -> Survey:
    settings = Settings.from_mapping({"budget": {"macs": 0.5}, **section})
    return survey(model, example, settings, manager().registered(LAYER_ADAPTERS))


def beside(module: nn.Module, example: torch.Tensor = X) -> Survey:
    """What is found of a module that stands beside a linear layer."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.other = nn.Linear(16, 16), module

        def forward(self, x):
            return self.fc(X), self.other(x)

    found = look(Both(), example)
    assert list(found.layers) == ["fc"]
    return found


def quiet(function, *args):
    """What torch warns of because it is old, is in use all the same."""
    with pytest.warns((FutureWarning, DeprecationWarning, UserWarning)):
        return function(*args)


class Positions(nn.Module):
    """A container that holds a parameter itself."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Parameter(torch.ones(1, 16)), nn.Linear(16, 16)

    def forward(self, x):
        return self.inner(x) + self.table


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(16, 16))

    def forward(self, x):
        return x @ self.weight


class Unlike(nn.Linear):
    def forward(self, x):
        return -super().forward(x)


UNLIKE = f"{__name__}.Unlike is a subclass of torch.nn.Linear that may compute something else"
TOKENS = torch.zeros(2, 5, dtype=torch.long)
UNKNOWN = [
    pytest.param(nn.LSTM(16, 8), X, {"other": "no layer adapter for LSTM"}, id="lstm"),
    pytest.param(nn.GRU(16, 8, 2, bidirectional=True), X, {"other": "no layer adapter for GRU"}, id="gru"),
    pytest.param(nn.RNN(16, 8), X, {"other": "no layer adapter for RNN"}, id="rnn"),
    pytest.param(nn.LSTMCell(16, 8), X, {"other": "no layer adapter for LSTMCell"}, id="cell"),
    pytest.param(nn.Embedding(9, 4), TOKENS, {"other": "no layer adapter for Embedding"}, id="embedding"),
    pytest.param(nn.EmbeddingBag(9, 4), TOKENS, {"other": "no layer adapter for EmbeddingBag"}, id="bag"),
    pytest.param(
        nn.ConvTranspose1d(16, 8, 1), torch.ones(2, 16, 4), {"other": "no layer adapter for ConvTranspose1d"},
        id="transposed",
    ),
    pytest.param(nn.PReLU(16), X, {}, id="a vector is no weight"),
    pytest.param(nn.BatchNorm1d(16), X, {}, id="batch norm"),
    pytest.param(nn.LayerNorm(16), X, {}, id="layer norm"),
    pytest.param(nn.LayerNorm((64, 16)), X, {"other": "no layer adapter for LayerNorm"}, id="a norm with a plane"),
    pytest.param(Product(), X, {"other": "no layer adapter for Product"}, id="own layer"),
    pytest.param(Buffered(), X, {"other": "no layer adapter for Buffered"}, id="a buffer for a weight"),
    pytest.param(Unlike(16, 16), X, {"other": UNLIKE}, id="subclass"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "example", "refusals"), UNKNOWN)
def test_layers_of_other_kinds(module, example, refusals):
    assert beside(module, example).refusals == refusals


def test_containers_that_hold_parameters():
    found = look(Positions())
    assert list(found.layers) == ["inner"]
    assert found.refusals == {"": "no layer adapter for Positions, which holds 'table' itself"}


class Attends(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.attention, self.fc = nn.MultiheadAttention(16, 4, batch_first=True, **options), nn.Linear(16, 16)

    def forward(self, x):
        return self.fc(self.attention(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize(
    ("options", "held"),
    [({}, "'in_proj_weight'"), ({"kdim": 16, "vdim": 16, "add_bias_kv": True}, "'in_proj_weight', 'bias_k', 'bias_v'")],
)
def test_attention(options, held):
    found = look(Attends(**options), torch.randn(2, 5, 16))
    assert list(found.layers) == ["fc"]
    assert found.refusals["attention"] == f"no layer adapter for MultiheadAttention, which holds {held} itself"
    assert "'weight' is read outside of its own forward" in found.refusals["attention.out_proj"]


def test_fused_encoder_layers_read_the_weights():
    layer, x = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(), torch.randn(8, 5, 16)
    found = look(layer, x)
    assert not found.layers
    assert {"self_attn", "self_attn.out_proj", "linear1", "linear2"} == set(found.refusals)
    assert all("read outside" in found.refusals[name] for name in ("linear1", "linear2"))
    # one that is not fused
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation=nn.SiLU()).eval()
    small = lowrank_plugin.decompose(layer, [x], budget={"macs": 0.8}, rank_multiple=1)
    assert set(lowrank_plugin.report(small).to_dict()["layers"]) == {"linear1", "linear2"}
    assert torch.isfinite(small(x)).all()


COMPUTED = [
    pytest.param(lambda: quiet(nn.utils.weight_norm, nn.Linear(16, 16)), "remove_weight_norm", id="weight_norm"),
    pytest.param(lambda: nn.utils.spectral_norm(nn.Linear(16, 16)), "remove_spectral_norm", id="spectral_norm"),
    pytest.param(lambda: prune.l1_unstructured(nn.Linear(16, 16), "weight", 0.5), "prune.remove", id="pruned"),
    pytest.param(lambda: pruned_twice(nn.Linear(16, 16)), "prune.remove", id="pruned twice"),
]


def pruned_twice(layer):
    for _ in range(2):
        prune.ln_structured(layer, "weight", 0.25, n=2, dim=0)
    return layer


@pytest.mark.parametrize(("make", "undone"), COMPUTED)
def test_weights_that_hooks_compute(make, undone):
    found = beside(make())
    assert list(found.refusals) == ["other"]
    assert found.refusals["other"].startswith("its weight is computed by a hook before each forward; undo that by")
    assert found.refusals["other"].endswith(undone)


def test_a_budget_that_is_too_tight_names_the_largest_of_them():
    pruned = prune.l1_unstructured(nn.Linear(16, 512), "weight", 0.5)
    model = nn.Sequential(nn.Linear(16, 16), pruned)
    with pytest.raises(BudgetError, match="The largest layer left alone is '1': its weight is computed by a hook"):
        lowrank_plugin.decompose(model, [X], **HALF)


def test_after_a_mask_is_removed_its_layer_is_compressed():
    layer = prune.l1_unstructured(nn.Linear(16, 16), "weight", 0.5)
    prune.remove(layer, "weight")
    assert list(look(nn.Sequential(layer)).layers) == ["0"]


@pytest.mark.parametrize("make", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrised_weights(make):
    found = beside(make(nn.Linear(16, 16)))
    assert found.refusals == {"other": "its weight is parametrised; remove the parametrisations first"}


def test_weights_that_are_no_parameters():
    layer = nn.Linear(16, 16)
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)
    assert beside(layer).refusals == {"other": "its weight is not a parameter"}


def test_weights_of_zeros_are_about_to_be_trained():
    layer = nn.Linear(16, 16)
    nn.init.zeros_(layer.weight)
    assert beside(layer).refusals == {"other": "its weight is all zeros"}


class Adapter(nn.Module):
    """Low-rank adapters as PEFT builds them."""

    adapter_layer_names = ("lora_A", "lora_B")

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, base_layer.out_features, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def test_adapters_are_merged_first():
    found = beside(Adapter(nn.Linear(16, 16)))
    reason = "it is inside of the adapter Adapter; merge adapters first, or add them afterwards"
    names = ("other.base_layer", "other.lora_A.default", "other.lora_B.default")
    assert found.refusals == dict.fromkeys(names, reason)


def test_quantized_layers():
    def quantized():
        from torch.ao.quantization import quantize_dynamic

        return quantize_dynamic(nn.Sequential(nn.Linear(16, 16), nn.LSTM(16, 8)), {nn.Linear, nn.LSTM}, torch.qint8)

    with pytest.warns((DeprecationWarning, FutureWarning, UserWarning)):
        model = quantized()
    found = beside(model, torch.randn(2, 5, 16))
    reason = "its weight was quantized and packed; compress first and quantize afterwards"
    assert found.refusals == {"other.0": reason, "other.1": reason}


@pytest.mark.parametrize("make", [torch.jit.script, lambda module: torch.jit.trace(module, X)], ids=["script", "trace"])
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_children(make):
    found = beside(make(nn.Sequential(nn.Linear(16, 16), nn.ReLU())))
    assert list(found.refusals) == ["other.0"]
    assert found.refusals["other.0"].startswith("it is a ScriptModule; compress the eager model")


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (torch.jit.script, "ScriptModule.*Pass the eager model, and script or trace the compressed one"),
        (lambda model: torch.jit.trace(model, X), "ScriptModule.*script or trace the compressed one"),
        (lambda model: torch.jit.freeze(torch.jit.script(model.eval())), "ScriptModule"),
        (lambda model: torch.export.export(model, (X,)), "exported graph.*Pass the eager model, and export the comp"),
        (lambda model: torch.export.export(model, (X,)).module(), "exported graph.*export the compressed one"),
        (lambda model: model.forward, "Expected the model to be a torch.nn.Module, but it is of type method"),
    ],
    ids=["script", "trace", "frozen", "exported", "unlifted", "function"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("call", [lowrank_plugin.decompose, lowrank_plugin.plan])
def test_graphs_are_refused_at_once(make, advice, call):
    model = make(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)))
    with pytest.raises(ConfigurationError, match=advice):
        call(model, [(X, torch.zeros(64))], **HALF)
    with pytest.raises(ConfigurationError, match=advice):
        lowrank_plugin.collect_statistics(model, [X])


def test_graphs_that_call_modules_are_models():
    traced = fx.symbolic_trace(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)))
    assert list(look(traced).layers) == ["0", "2"]
