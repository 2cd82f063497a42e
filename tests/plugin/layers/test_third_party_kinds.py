# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A layer kind that somebody else brings along goes the whole way with its adapter alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import lowrank_plugin
from lowrank_hooks import Factorization, LayerAdapterRecord, Stage, hookimpl
from lowrank_plugin.int8.rounding import Grid, round_weights
from lowrank_plugin.layers.adapters import LinearAdapter
from lowrank_plugin.plugins import manager


class Rows(nn.Module):
    """A linear layer that keeps its weight as [inputs, outputs]."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x):
        return x @ self.weight if self.bias is None else x @ self.weight + self.bias


class RowsAdapter(LinearAdapter):
    """Chains are of the same kind."""

    def to_kernel(self, module, weight):
        return weight.mT.unsqueeze(0)

    def to_weight(self, module, kernel):
        return kernel.squeeze(0).mT

    def build(self, module, factorization, bias):
        weights = [stage.weight[0].mT.contiguous() for stage in factorization.stages]
        return nn.Sequential(*(Rows(each, None) for each in weights[:-1]), Rows(weights[-1], bias))

    def to_dense(self, module):
        kernel = Factorization(tuple(Stage(stage.weight.detach().mT[None]) for stage in module)).to_kernel()
        return Rows(kernel[0].mT, module[-1].bias)


@pytest.fixture
def model():
    class Plugin:
        @hookimpl
        def lowrank_layer_adapters(self):
            yield LayerAdapterRecord("Rows", Rows, RowsAdapter())

    made = Plugin()
    manager().register(made, "third-party")
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(16, 16, generator=generator) / 4 for _ in range(2))
    yield nn.Sequential(Rows(first, torch.zeros(16)), nn.Tanh(), Rows(second, torch.zeros(16)))
    manager().unregister(made)


@pytest.fixture
def x():
    return torch.randn(256, 16, generator=torch.Generator().manual_seed(1)) + 1


def matches_moments(small, model, x):
    wanted, found = model(x), small(x)
    torch.testing.assert_close(found.mean(dim=0), wanted.mean(dim=0), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.var(dim=0), wanted.var(dim=0), atol=0, rtol=1e-4)


@torch.no_grad()
def test_it_is_repaired(model, x):
    section = {"ranks": {"0": 6, "2": 6}, "repair": "none"}
    broken = lowrank_plugin.decompose(model, [x], **section)
    matched = lowrank_plugin.decompose(model, [x], **{**section, "repair": "moments"})
    distilled = lowrank_plugin.decompose(model, [x], **{**section, "repair": "distill"})
    assert [type(stage) for stage in matched[0]] == [Rows, Rows]
    matches_moments(matched, model, x)
    errors = [(each(x) - model(x)).square().mean() for each in (broken, matched, distilled)]
    assert errors[2] < 0.9 * min(errors[:2])


@torch.no_grad()
def test_its_chains_are_rotated(model, x):
    small = lowrank_plugin.decompose(model, [x], ranks={"0": 6, "2": 6})
    rotated = lowrank_plugin.rotate_chains(small, [x])
    assert not torch.allclose(rotated[0][0].weight, small[0][0].weight)
    torch.testing.assert_close(rotated(x), small(x), atol=1e-5, rtol=1e-5)
    between = x @ rotated[0][0].weight
    squares = between.square().mean(dim=0)
    assert squares.max() < 2.5 * squares.mean(), "channels are of one size, up to the Hartley matrix"


@torch.no_grad()
def test_its_weights_are_rounded(model, x):
    grid = Grid(torch.full((16, 1), 0.2), torch.full((16, 1), -2.0), torch.full((16, 1), 2.0))
    nearest, before = copy.deepcopy(model), model(x)
    nearest[0].weight.copy_(grid.nearest(model[0].weight.mT).mT)
    round_weights(model, {"0": grid}, [x])
    steps = model[0].weight / 0.2
    torch.testing.assert_close(steps, steps.round(), atol=1e-5, rtol=0)
    assert (model(x) - before).square().mean() < 0.9 * (nearest(x) - before).square().mean()
