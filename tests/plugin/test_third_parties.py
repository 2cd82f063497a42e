# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What the core owes to decomposers and layer adapters that are not its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lowrank_plugin
from lowrank_hooks import DecomposerRecord, KernelShape, Point, RankPolicyRecord, hookimpl
from lowrank_plugin.errors import PluginError
from lowrank_plugin.layers.adapters import ConvAdapter
from lowrank_plugin.layers.survey import Layer
from lowrank_plugin.plugins import manager
from lowrank_plugin.solvers.svd import Svd
from lowrank_plugin.statistics.collection import collect


class OneNorm(Svd):
    """Refuses all norms but one, as the contract allows."""

    def curve(self, problem):
        if problem.norm.name != "frobenius":
            raise ValueError(f"one_norm does not support the norm {problem.norm.name!r}.")
        return super().curve(problem)


@pytest.fixture
def one_norm():
    class Plugin:
        @hookimpl
        def lowrank_decomposers(self):
            yield DecomposerRecord("one_norm", OneNorm())

    made = Plugin()
    manager().register(made, "third-party")
    yield
    manager().unregister(made)


@pytest.mark.usefixtures("one_norm")
@pytest.mark.parametrize("norm", ["covariance", "two-sided"])
def test_a_decomposer_that_refuses_the_norm_stops_nobody(caplog, norm):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    made = lowrank_plugin.plan(model, [torch.randn(64, 16)], budget={"macs": 0.5}, norm=norm, rank_multiple=1)
    assert {layer["decomposer"] for layer in made["layers"].values()} <= {"svd", "dense"}
    assert f"one_norm does not compete: one_norm does not support the norm '{norm}'" in caplog.text


class Unsure(Svd):
    """Predicts NaN at its two lowest ranks."""

    def curve(self, problem):
        points = super().curve(problem)
        return [Point(point.rank, float("nan")) for point in points[:2]] + points[2:]


def policies_seen(insights):
    """Policies of a third party: one that looks at kernels, and two that give no usable index."""

    def widest(options, budget):
        insights.update({name: of_layer[0].insight for name, of_layer in options.items()})
        return {name: min(range(len(each)), key=lambda i: each[i].cost) for name, each in options.items()}

    yield RankPolicyRecord("widest", widest, inspect=lambda problem: problem.shape.in_channels)
    yield RankPolicyRecord("forgetful", lambda options, budget: {})
    yield RankPolicyRecord("beyond", lambda options, budget: dict.fromkeys(options, 10**6))


@pytest.fixture
def insights():
    found = {}

    class Plugin:
        @hookimpl
        def lowrank_decomposers(self):
            yield DecomposerRecord("unsure", Unsure(), automatic=False)

        @hookimpl
        def lowrank_rank_policies(self):
            yield from policies_seen(found)

    made = Plugin()
    manager().register(made, "third-party")
    yield found
    manager().unregister(made)


def small_plan(**section):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    return lowrank_plugin.plan(model, [torch.randn(64, 16)], rank_multiple=1, budget={"macs": 0.5}, **section)


def test_a_policy_may_look_at_the_kernels(insights):
    assert small_plan(policy="widest")["allocation"]["gap"] >= 0
    assert insights == {"0": 16, "2": 16}


@pytest.mark.usefixtures("insights")
@pytest.mark.parametrize(("policy", "told"), [("forgetful", "not None"), ("beyond", "not 1000000")])
def test_a_policy_that_gives_no_usable_index_is_named(policy, told):
    with pytest.raises(PluginError, match=f"rank policy '{policy}' must give layer '0' .*{told}"):
        small_plan(policy=policy)


@pytest.mark.usefixtures("insights")
def test_ranks_without_a_predicted_error_are_not_offered(caplog):
    plan = small_plan(decomposers=["unsure"], policy="widest")
    assert "unsure predicts the error nan" in caplog.text
    assert all(layer["error"] is not None for layer in plan["layers"].values())


class Collapses(Svd):
    """Its factorisation breaks down."""

    def fit(self, problem, rank):
        torch.linalg.cholesky(-torch.eye(2))


def test_a_fit_that_breaks_down_keeps_the_layer(caplog):
    class Plugin:
        @hookimpl
        def lowrank_decomposers(self):
            yield DecomposerRecord("collapses", Collapses())

    made = Plugin()
    manager().register(made, "third-party")
    try:
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        section = {"ranks": {"0": 4}, "decomposers": ["collapses"]}
        small = lowrank_plugin.decompose(model, [torch.randn(64, 16)], **section)
        with pytest.raises(lowrank_plugin.errors.PlanError, match="fit by 'collapses' failed"):
            lowrank_plugin.decompose(model, [torch.randn(64, 16)], on_failure="raise", **section)
    finally:
        manager().unregister(made)
    assert isinstance(small[0], nn.Linear)
    assert "Layer 0 stays dense: its fit by 'collapses' failed" in caplog.text


class Strided(nn.Module):
    """A convolution that is none of torch's classes."""

    def __init__(self, *arguments, **options):
        super().__init__()
        self.inner = nn.Conv2d(*arguments, **options)

    def forward(self, x):
        return self.inner(x)


class Seen:
    """Tells the windows of such a layer, and counts how often its patches are put together."""

    def __init__(self, windows):
        self.built = 0
        if windows:
            self.windows = lambda module: ConvAdapter().windows(module.inner)

    def kernel(self, module):
        return ConvAdapter().kernel(module.inner)

    def patches(self, module, inputs):
        self.built += 1
        return ConvAdapter().patches(module.inner, inputs)

    def outputs(self, module, outputs):
        return ConvAdapter().outputs(module.inner, outputs)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("positions", [0.5, 1e9])
def test_patches_of_an_adapter_that_tells_its_windows_are_not_all_built(stride, positions):
    layer = Strided(4, 6, 3, stride=stride, padding=1, groups=2).double()
    inputs = torch.randn(8, 4, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, built = [], []
    for windows in (False, True):
        adapter, shape = Seen(windows), KernelShape(2, 3, 2, (3, 3))
        known = Layer("", "Strided", adapter, shape, ((inputs.shape, layer(inputs).shape),))
        moments = collect(layer, {"": known}, [inputs], positions=positions)[""].inputs
        found.append((moments.count, moments.mean, moments.covariance))
        built.append(adapter.built)
    # without strides whole maps are correlated; with them, all patches are built only where all are wanted
    assert built == [1, 1 if stride == 2 and positions > 1 else 0]
    torch.testing.assert_close(found[1], found[0])
