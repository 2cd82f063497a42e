# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Modules that are not initialised, have several names, are frozen, or leave nothing to compress."""

from __future__ import annotations

import copy

import pytest
import torch
from plugin.layers.foreign import Product
from torch import nn

import lowrank_plugin
from lowrank_plugin.errors import BudgetError, CalibrationError, ConfigurationError
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


def lazy():
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(16))


def test_lazy_modules_are_run_by_the_user_first():
    images = torch.randn(64, 3, 8, 8)
    model = lazy()
    with pytest.raises(CalibrationError, match=r"'0' \(LazyConv2d\) is not initialised: run the model once on an ex"):
        lowrank_plugin.decompose(model, [images], **HALF)
    assert [type(each) for each in model] == [nn.LazyConv2d, nn.LazyBatchNorm2d, nn.Flatten, nn.LazyLinear]
    assert not any(len(each._forward_pre_hooks) > 1 for each in model)
    model(images)
    small = lowrank_plugin.decompose(model, [images], **HALF)
    assert list(lowrank_plugin.report(small).to_dict()["layers"]) == ["0", "3"]


def test_a_later_lazy_module_leaves_the_earlier_ones_too():
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.LazyLinear(4))
    with pytest.raises(CalibrationError, match="'2'"):
        look(model)
    assert isinstance(model[2], nn.LazyLinear)
    with pytest.raises(CalibrationError, match=r"The model's '' \(LazyLinear\) is not initialised"):
        look(nn.LazyLinear(4))


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.unused = nn.Linear(16, 16), nn.LazyLinear(4)

    def forward(self, x):
        return self.fc(x)


def test_lazy_modules_that_are_not_called():
    found = look(Idle())
    assert list(found.layers) == ["fc"]
    assert found.refusals == {"unused": "its weight is not initialised"}
    assert found.parameters == 16 * 17
    lowrank_plugin.decompose(Idle(), [X], **HALF)


class Unet(nn.Module):
    """Its layers have two names each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)
        self.body = nn.ModuleList([self.first, self.last])

    def forward(self, x):
        return self.last(self.first(x).relu())


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ({"ignored_scopes": ["body.0"]}, ["last"]),
        ({"ignored_scopes": ["body"]}, []),
        ({"target_scopes": ["body/1"]}, ["last"]),
        ({"ignored_scopes": ["{re}^body.1$"]}, ["first"]),
        ({"ignored_scopes": ["first"]}, ["last"]),
    ],
)
def test_scopes_by_any_name(section, names):
    assert list(look(Unet(), **section).layers) == names


def test_ranks_by_any_name():
    small = lowrank_plugin.decompose(Unet(), [X], ranks={"body.1": 3})
    layers = lowrank_plugin.report(small).to_dict()["layers"]
    assert layers["last"]["rank"] == [3]
    assert layers["first"]["decomposer"] == "dense"
    assert small.body[1] is small.last
    with pytest.raises(ConfigurationError, match=r"'body\.2' in 'ignored_scopes' matches no layer"):
        look(Unet(), ignored_scopes=["body.2"])


@pytest.mark.parametrize(("weight", "bias"), [(True, False), (False, True), (False, False), (True, True)])
def test_weights_and_biases_are_frozen_by_themselves(weight, bias):
    model = nn.Sequential(nn.Linear(16, 16), nn.Conv1d(64, 64, 1))
    for layer in model:
        layer.weight.requires_grad_(weight)
        layer.bias.requires_grad_(bias)
    small = lowrank_plugin.decompose(model, [X], ranks={"0": 4, "1": 8})
    restored = lowrank_plugin.restore(copy.deepcopy(model), lowrank_plugin.get_state(small))
    for each in (small, restored):
        for chain in each:
            assert [stage.weight.requires_grad for stage in chain] == [weight] * 2
            assert chain[-1].bias.requires_grad == bias
    dense = lowrank_plugin.to_dense(small)
    assert [(layer.weight.requires_grad, layer.bias.requires_grad) for layer in dense] == [(weight, bias)] * 2


NOTHING = [
    pytest.param(nn.GRU(16, 8), "The largest layer left alone is '': no layer adapter for GRU", id="gru"),
    pytest.param(nn.Sequential(nn.ReLU()), "It holds no weights", id="no weights"),
    pytest.param(Product(), "no layer adapter for Product", id="own"),
]


@pytest.mark.parametrize(("model", "reason"), NOTHING)
def test_nothing_to_compress(model, reason, caplog):
    for budget in ({"macs": 0.5}, {"parameters": 0.5}):
        with pytest.raises(BudgetError, match=f"nothing of this model can be compressed. .*{reason}"):
            lowrank_plugin.decompose(model, [X], budget=budget)
    assert not [each for each in caplog.records if each.levelname == "WARNING"]
    assert lowrank_plugin.collect_statistics(model, [X]) is not None
    assert not [each for each in caplog.records if each.levelname == "WARNING"]
