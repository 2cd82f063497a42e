# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Distillation: the solver against exact answers, blocks that never get worse, interruptions that cost nothing."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowrank_plugin
from lowrank_hooks import StepEvent, hookimpl
from lowrank_plugin.errors import CalibrationError, ConfigurationError, PlanError
from lowrank_plugin.layers.adapters import ConvAdapter, LinearAdapter
from lowrank_plugin.outputs.losses import Values
from lowrank_plugin.plugins import manager
from lowrank_plugin.repair.distill import find_blocks
from lowrank_plugin.repair.gauss_newton import Sample, minimise
from lowrank_plugin.repair.kronecker import DAMPING, Kronecker
from lowrank_plugin.solvers.cp.sensitivity import Factors, rescale, sensitivity

SECTION: dict[str, Any] = {"budget": {"macs": 0.5}, "rank_multiple": 1}


def shapes(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    return F.linear(x, weights["w"], weights["b"])


def test_a_linear_problem_is_solved_exactly():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, size, generator=generator, dtype=torch.float64) for size in (5, 3))
    start = {"w": torch.zeros(3, 5, dtype=torch.float64), "b": torch.zeros(3, dtype=torch.float64)}
    samples = [Sample(x[:20], y[:20]), Sample(x[20:], y[20:])]
    outcome = minimise(
        lambda weights, inputs: shapes(inputs, weights),
        start, samples, samples, Values(), lambda gradient: gradient, {"w": 0.0, "b": 0.0}, steps=60,
    )  # fmt: skip
    exact = torch.linalg.lstsq(torch.cat([x, torch.ones(40, 1)], dim=1), y).solution.T
    torch.testing.assert_close(outcome.weights["w"], exact[:, :5], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(outcome.weights["b"], exact[:, 5], rtol=1e-6, atol=1e-8)
    assert not start["w"].any(), "the start was changed"


def test_damping_gives_the_ridge_solution():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, size, generator=generator, dtype=torch.float64) for size in (5, 3))
    start = {"w": torch.zeros(3, 5, dtype=torch.float64)}
    samples = [Sample(x, y)]
    outcome = minimise(
        lambda weights, inputs: inputs @ weights["w"].T,
        start, samples, samples, Values(), lambda gradient: gradient, {"w": 4.0}, steps=40,
    )  # fmt: skip
    ridge = torch.linalg.solve(x.T @ x + 4 * torch.eye(5, dtype=torch.float64), x.T @ y).T
    torch.testing.assert_close(outcome.weights["w"], ridge, rtol=1e-6, atol=1e-8)


def test_kronecker_inverts_the_curvature_of_a_linear_layer():
    layer = nn.Linear(4, 3).double()
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def function(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {name[6:]: each for name, each in weights.items()}, (inputs,))

    samples = [Sample(x, torch.zeros(64, 3, dtype=torch.float64))] * 200
    curvature = Kronecker(function, {"layer": (layer, LinearAdapter())}, samples, 1.0, Values(), seed=0)
    gradient = {
        name: torch.randn_like(each) for name, each in {"layer.weight": layer.weight, "layer.bias": layer.bias}.items()
    }
    ones = torch.cat([x, torch.ones(64, 1, dtype=torch.float64)], dim=1)
    moments = 200 * ones.T @ ones
    moments += DAMPING * moments.diagonal().mean() * torch.eye(5, dtype=torch.float64)
    rows = torch.cat([gradient["layer.weight"], gradient["layer.bias"][:, None]], dim=1)
    expected = torch.linalg.solve(moments, rows.T).T
    found = curvature.solve(gradient)
    # the probes' second moments are the identity up to their number, 12800
    torch.testing.assert_close(found["layer.weight"], expected[:, :4], rtol=0.1, atol=0.1 * float(expected.abs().max()))
    assert curvature.damping["layer.weight"] == curvature.damping["layer.bias"] > 0


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_kronecker_is_symmetric_and_positive_for_groups(groups):
    layer = nn.Conv2d(6, 6, 3, groups=groups, padding=1)
    x = torch.randn(8, 6, 5, 5, generator=torch.Generator().manual_seed(0))

    def function(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {name[6:]: each for name, each in weights.items()}, (inputs,))

    curvature = Kronecker(function, {"layer": (layer, ConvAdapter())}, [Sample(x, x)], 1.0, Values(), seed=0)
    first, second = ({"layer.weight": torch.randn_like(layer.weight), "layer.bias": torch.randn(6)} for _ in range(2))
    inner = lambda a, b: sum(float((a[name] * b[name]).sum()) for name in a)  # noqa: E731
    assert inner(first, curvature.solve(first)) > 0
    assert inner(first, curvature.solve(second)) == pytest.approx(
        inner(second, curvature.solve(first)), rel=1e-3, abs=1e-6
    )


def test_blocks_are_the_nearest_modules_that_are_no_sequences(network):
    blocks = find_blocks(network, ["0", "1.conv1", "1.conv2", "2", "3.conv2"])
    assert [(block.name, block.chains) for block in blocks] == [
        ("0", ("0",)), ("1", ("1.conv1", "1.conv2")), ("2", ("2",)), ("3", ("3.conv2",)),
    ]  # fmt: skip


def smooth(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.randn(count, 3, 5, 5, generator=generator), 16, mode="bilinear")


def distance(small: nn.Module, network: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        expected = network(inputs)
        return float((small(inputs) - expected).square().sum() / (expected - expected.mean(0)).square().sum())


def test_every_block_and_the_network_get_closer(network):
    images = list(smooth(0, 256).split(32))
    before = copy.deepcopy(network.state_dict())
    matched = lowrank_plugin.decompose(network, images, **SECTION)
    distilled = lowrank_plugin.decompose(network, images, repair="distill", **SECTION)
    errors = lowrank_plugin.report(distilled).to_dict()["distilled"]
    assert {"1", "3"} <= set(errors)
    assert all(after <= first for first, after in errors.values())
    assert any(after < 0.9 * first for first, after in errors.values())
    assert distance(distilled, network, smooth(1, 64)) < distance(matched, network, smooth(1, 64))
    assert all(torch.equal(each, before[name]) for name, each in network.state_dict().items())
    assert all(parameter.grad is None for parameter in [*network.parameters(), *distilled.parameters()])


def test_in_place_gives_the_same(network, images):
    section = {**SECTION, "repair": "distill", "distillation": {"steps": 2, "network_steps": 0}}
    there = lowrank_plugin.decompose(network, images, **section)
    mine = copy.deepcopy(network)
    here = lowrank_plugin.decompose(mine, images, inplace=True, **section)
    assert here is mine
    assert all(torch.equal(each, there.state_dict()[name]) for name, each in here.state_dict().items())


def factors_of(chain: nn.Module) -> Factors:
    inputs, taps, outputs = (stage.weight.detach().flatten(1).double()[None] for stage in chain)
    return Factors(outputs, inputs.mT, taps.mT)


def test_the_factors_of_cp_chains_stay_balanced_and_of_their_size(network):
    images = list(smooth(0, 256).split(32))
    section = {**SECTION, "decomposers": ["cpd"], "ignored_scopes": ["6"]}
    matched, distilled = (
        lowrank_plugin.decompose(network, images, repair=repair, **section) for repair in ("moments", "distill")
    )
    chains = [name for name, each in lowrank_plugin.report(matched).to_dict()["layers"].items() if each["rank"]]
    assert chains
    for name in chains:
        before, after = (factors_of(each.get_submodule(name)) for each in (matched, distilled))
        assert float(sensitivity(after).sum()) < 1.25 * float(sensitivity(before).sum())
        assert float(sensitivity(after).sum()) < 1.1 * float(sensitivity(rescale(after)).sum())


class InterruptionError(Exception):
    """What a user's impatience looks like."""


def test_an_interrupted_distillation_goes_on(network, images, tmp_path):
    section = {**SECTION, "repair": "distill"}
    whole = lowrank_plugin.decompose(network, images, **section)

    class Interrupting:
        @hookimpl
        def lowrank_step(self, event: StepEvent) -> None:
            if event.step == "distill" and event.done == 2:
                raise InterruptionError

    kept = {**section, "distillation": {"checkpoint": str(tmp_path / "progress.safetensors")}}
    observer = Interrupting()
    manager().register(observer)
    try:
        with pytest.raises(InterruptionError):
            lowrank_plugin.decompose(network, images, **kept)
    finally:
        manager().unregister(observer)
    resumed = lowrank_plugin.decompose(network, images, **kept)
    assert all(torch.equal(each, whole.state_dict()[name]) for name, each in resumed.state_dict().items())


@pytest.mark.parametrize("damage", ["foreign", "truncated", "folder"])
def test_a_checkpoint_that_cannot_be_used(network, images, tmp_path: Path, damage):
    path = tmp_path / "progress.safetensors"
    section = {
        **SECTION,
        "repair": "distill",
        "distillation": {"steps": 1, "network_steps": 0, "checkpoint": str(path)},
    }
    if damage == "folder":
        section["distillation"]["checkpoint"] = str(tmp_path / "missing" / "progress.safetensors")
    else:
        lowrank_plugin.decompose(network, images, **section)
        if damage == "truncated":
            path.write_bytes(path.read_bytes()[:100])
        else:
            images = [2 * batch for batch in images]
    before = path.read_bytes() if path.exists() else b""
    with pytest.raises(PlanError, match="checkpoint"):
        lowrank_plugin.decompose(network, images, **section)
    assert (path.read_bytes() if path.exists() else b"") == before


def test_one_sample_is_too_few(network, images):
    with pytest.raises(CalibrationError, match="at least 2"):
        lowrank_plugin.decompose(network, [images[0][:1]], repair="distill", norm="frobenius", **SECTION)


def test_half_precision_is_matched_only(network, images, caplog):
    halves = [batch.bfloat16() for batch in images]
    with caplog.at_level(logging.WARNING):
        small = lowrank_plugin.decompose(network.bfloat16(), halves, repair="distill", **SECTION)
    assert "float32" in caplog.text
    assert "distilled" not in lowrank_plugin.report(small).to_dict()


def test_an_unknown_key_is_named(network, images):
    with pytest.raises(ConfigurationError, match="steps"):
        lowrank_plugin.decompose(network, images, distillation={"step": 3}, **SECTION)


@pytest.mark.parametrize("count", [2, 8, 15])
def test_few_samples_are_enough(count):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 10))
    small = lowrank_plugin.decompose(model, [torch.randn(count, 16)], **SECTION, repair="distill")
    blocks = lowrank_plugin.report(small).to_dict()["distilled"]
    assert blocks, "samples were held out one by one"
    assert all(0 <= after <= before for before, after in blocks.values())


def test_a_block_without_a_use_is_left_alone(caplog):
    torch.manual_seed(0)

    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x):
            return F.relu(self.layer(x) - 1000)

    model = nn.Sequential(Dead(), nn.Linear(16, 10))
    section = {"ranks": {"0.layer": 4}, "decomposers": ["svd"], "repair": "distill"}
    with caplog.at_level(logging.INFO):
        small = lowrank_plugin.decompose(model, [torch.randn(64, 16)], **section)
    assert isinstance(small[0].layer, nn.Sequential)
    assert "0" not in lowrank_plugin.report(small).to_dict().get("distilled", {})
    assert "puts out the same for all samples" in caplog.text
