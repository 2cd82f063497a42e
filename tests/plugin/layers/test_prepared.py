# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Subclasses that pad, cast or standardise before they call their base's function: taken where that is verified."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowrank_plugin
from lowrank_plugin.layers.survey import survey
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
from lowrank_plugin.settings import Settings


def same_padding(size, kernel, stride, dilation):
    """Before and behind, as TensorFlow pads."""
    total = max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


class SamePadded(nn.Conv2d):
    """Pads by the size of its input."""

    def forward(self, x):
        sides = [
            same_padding(*each) for each in zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True)
        ]
        x = F.pad(x, (*sides[1], *sides[0]))
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class StaticSamePadded(nn.Conv2d):
    """Pads by the size that it was made for."""

    def __init__(self, *args, image=8, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        sides = [same_padding(image, *each) for each in zip(self.kernel_size, self.stride, self.dilation, strict=True)]
        pad = (*sides[1], *sides[0])
        self.static_padding = nn.ZeroPad2d(pad) if any(pad) else nn.Identity()

    def forward(self, x):
        x = self.static_padding(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """Weights of zero mean and unit variance."""

    def forward(self, x):
        flat = self.weight.flatten(1)
        flat = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return F.conv2d(x, flat.view_as(self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups)


class Scaled(Standardised):
    """Has a gain for each channel too."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, self.out_channels).view(-1, 1, 1, 1))

    def forward(self, x):
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, weight=self.gain.flatten(), training=True,
            momentum=0.0,
        ).reshape_as(self.weight)  # fmt: skip
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Casting(nn.Linear):
    """Casts where it is scripted."""

    def forward(self, x):
        if torch.jit.is_scripting():
            return F.linear(x, self.weight.to(x.dtype), self.bias)
        return F.linear(x, self.weight, self.bias)


class Halved(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight / 2, self.bias)


class Conv1dSame(nn.Conv1d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1)))


class ByKeyword(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return F.conv2d(input=x, weight=weight, bias=bias, stride=self.stride, padding="same", groups=self.groups)


def look(model, example):
    return survey(model, example, Settings(budget={"macs": 0.5}), manager().registered(LAYER_ADAPTERS))


def images(*size, batch=16):
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))


TAKEN = [
    pytest.param(lambda: SamePadded(8, 12, 3), (8, 8, 8), id="same, stride 1"),
    pytest.param(lambda: SamePadded(8, 12, (5, 3), dilation=(1, 2)), (8, 11, 9), id="same, dilated"),
    pytest.param(lambda: SamePadded(8, 12, 2), (8, 8, 8), id="same, even kernel"),
    pytest.param(lambda: SamePadded(8, 12, 1), (8, 8, 8), id="same, 1x1"),
    pytest.param(lambda: SamePadded(8, 12, 1, bias=False), (8, 8, 8), id="same, no bias"),
    pytest.param(lambda: SamePadded(8, 12, 3, groups=2), (8, 8, 8), id="same, grouped"),
    pytest.param(lambda: StaticSamePadded(8, 12, 3), (8, 8, 8), id="static"),
    pytest.param(lambda: StaticSamePadded(8, 12, 3, stride=2), (8, 8, 8), id="static, uneven"),
    pytest.param(lambda: StaticSamePadded(8, 12, (3, 5), stride=(2, 1)), (8, 8, 8), id="static, uneven in one axis"),
    pytest.param(lambda: StaticSamePadded(8, 12, 1), (8, 8, 8), id="static, 1x1"),
    pytest.param(lambda: StaticSamePadded(8, 12, 3, stride=2, bias=False, groups=2), (8, 8, 8), id="static, grouped"),
    pytest.param(lambda: Standardised(8, 12, 3, padding=1), (8, 8, 8), id="standardised"),
    pytest.param(lambda: Standardised(8, 12, 3, stride=2, bias=False), (8, 9, 8), id="standardised, strided"),
    pytest.param(lambda: Scaled(8, 12, 3, padding=1), (8, 8, 8), id="scaled"),
    pytest.param(lambda: Casting(16, 12), (16,), id="casting"),
    pytest.param(lambda: Casting(16, 12, bias=False), (5, 16), id="casting, no bias"),
    pytest.param(lambda: Halved(16, 12), (16,), id="halved"),
    pytest.param(lambda: Conv1dSame(8, 12, 3), (8, 9), id="1d"),
    pytest.param(lambda: ByKeyword(8, 12, 3), (8, 9, 8), id="by keyword"),
]


@pytest.mark.parametrize(("make", "size"), TAKEN)
@torch.no_grad()
def test_what_only_prepares_is_compressed(make, size):
    torch.manual_seed(0)
    layer, x = make().eval(), images(*size)
    model = nn.Sequential(layer, nn.ReLU()).eval()
    found = look(model, x)
    assert found.refusals == {}
    assert [found.layers["0"].calls[0][1][1:]] == [model(x).shape[1:]]
    full = lowrank_plugin.decompose(model, [x], ranks={"0": 12 // getattr(layer, "groups", 1)}, decomposers=["svd"])
    assert all(type(each).__module__.startswith("torch.nn.") for each in full.modules())
    torch.testing.assert_close(full(x), model(x), atol=2e-5, rtol=1e-4)
    dense = lowrank_plugin.to_dense(full)
    torch.testing.assert_close(dense(x), model(x), atol=2e-5, rtol=1e-4)

    small = lowrank_plugin.decompose(model, [x], ranks={"0": 3}, decomposers=["svd"])
    state = json.loads(json.dumps(lowrank_plugin.get_state(small)))
    fresh = lowrank_plugin.restore(nn.Sequential(make(), nn.ReLU()).eval(), state)
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh(x), small(x))


@torch.no_grad()
def test_errors_are_those_of_the_output():
    """The covariance of the padded patches is the one that counts."""
    torch.manual_seed(0)
    layer, x = StaticSamePadded(8, 12, 3, stride=2), images(8, 8, 8, batch=64)
    model = nn.Sequential(layer).eval()
    small = lowrank_plugin.decompose(model, [x], ranks={"0": 4}, decomposers=["svd"], repair="none", norm="covariance")
    wanted = model(x)
    error = (small(x) - wanted).norm() / (wanted - wanted.mean((0, 2, 3), keepdim=True)).norm()
    told = lowrank_plugin.report(small).to_dict()["layers"]["0"]["error"]
    torch.testing.assert_close(float(error), told, rtol=0.02, atol=0)


class Other(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


class Twice(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + super().forward(x)


class Clamped(nn.Conv2d):
    def forward(self, x):
        return super().forward(x.clamp(min=-1))


class Dynamic(nn.Conv2d):
    """Its weight depends on its input."""

    def forward(self, x):
        return self._conv_forward(x, self.weight * x.mean(), self.bias)


class ZeroAdapter(nn.Linear):
    """Adapters inside of the layer, of no effect yet."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.lora_a, self.lora_b = nn.Parameter(torch.ones(2, 16)), nn.Parameter(torch.zeros(12, 2))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + x @ self.lora_a.T @ self.lora_b.T


class Reflecting(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1), mode="reflect"))


class BiasFree(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight)


REFUSED = [
    pytest.param(lambda: Other(8, 12, 3), (8, 8, 8), id="adds"),
    pytest.param(lambda: Twice(8, 12, 3), (8, 8, 8), id="twice"),
    pytest.param(lambda: Clamped(8, 12, 3), (8, 8, 8), id="clamps"),
    pytest.param(lambda: Dynamic(8, 12, 3), (8, 8, 8), id="dynamic"),
    pytest.param(lambda: ZeroAdapter(16, 12), (16,), id="adapter of zeros"),
    pytest.param(lambda: Reflecting(8, 12, 3), (8, 8, 8), id="reflects"),
    pytest.param(lambda: BiasFree(16, 12), (16,), id="leaves its bias out"),
]


@pytest.mark.parametrize(("make", "size"), REFUSED)
def test_what_computes_something_else_is_left_alone(make, size):
    layer = make()
    found = look(nn.Sequential(layer).eval(), images(*size))
    base = type(layer).__mro__[1].__name__
    wanted = f"{__name__}.{type(layer).__name__} is a subclass of torch.nn.{base} that may compute something else"
    assert found.refusals == {"0": wanted}


def test_padding_that_depends_on_the_size():
    found = look(nn.Sequential(SamePadded(8, 12, 3, stride=2)), images(8, 8, 8))
    assert found.refusals == {"0": "its padding depends on the size of its input"}


def test_folded_weights_are_not_trained_on():
    model, x = nn.Sequential(Standardised(8, 12, 3)), images(8, 8, 8)
    assert "in training mode; in eval mode the weight is folded" in look(model.train(), x).refusals["0"]
    assert not look(model.eval(), x).refusals


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(StaticSamePadded(8, 12, 3, stride=2), Scaled(12, 8, 3)).eval()
    before, kinds = copy.deepcopy(model.state_dict()), [type(each) for each in model]
    lowrank_plugin.decompose(model, [images(8, 8, 8)], budget={"macs": 0.6}, rank_multiple=1)
    assert [type(each) for each in model] == kinds
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(each.requires_grad for each in model.parameters())


def test_a_whole_network_of_them():
    torch.manual_seed(0)
    model = nn.Sequential(
        StaticSamePadded(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.SiLU(), SamePadded(16, 24, 3), nn.SiLU(),
        Scaled(24, 24, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Casting(24, 10),
    ).eval()  # fmt: skip
    x = images(3, 8, 8, batch=64)
    small = lowrank_plugin.decompose(model, [x], budget={"macs": 0.6}, rank_multiple=1, repair="distill")
    told = lowrank_plugin.report(small).to_dict()
    assert set(told["layers"]) == {"0", "3", "5", "8"}
    assert told["model"]["macs"][1] <= 0.6 * told["model"]["macs"][0]
    plan = lowrank_plugin.plan(model, [x], budget={"macs": 0.6}, rank_multiple=1)
    assert lowrank_plugin.apply(model, plan, [x])(x).shape == (64, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf_efficientnet_b0", "resnetv2_50x1_bit", "nf_resnet26", "vit_tiny_patch16_224"])
def test_networks_of_timm(name):
    timm = pytest.importorskip("timm")
    model, x = timm.create_model(name, num_classes=10).eval(), torch.randn(2, 3, 64, 64)
    if "vit" in name:
        x = torch.randn(2, 3, 224, 224)
    found = look(model, x)
    assert not [reason for reason in found.refusals.values() if "may compute something else" in reason]
    assert len(found.layers) > 10
