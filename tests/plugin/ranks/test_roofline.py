# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Measured costs drawn towards a model of all chains."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lowrank_hooks import StageShape
from lowrank_plugin.costs.counted import sizes
from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.layers.survey import survey
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
from lowrank_plugin.ranks.proposals import Choices, Proposal
from lowrank_plugin.ranks.roofline import fit, smooth, smoothed, work
from lowrank_plugin.settings import Settings

RATES = torch.tensor([1e-6, 4e-6, 2e-6, 1e-5, 1e-6, 5e-3], dtype=torch.float64)


@pytest.fixture
def layers(network):
    example = torch.zeros(1, 3, 16, 16)
    return survey(network, example, Settings(budget={"macs": 0.5}), manager().registered(LAYER_ADAPTERS)).layers


def chains(shape, rank):
    pointwise = StageShape(rank, shape.in_channels, (1, 1)), StageShape(shape.out_channels, rank, (1, 1))
    yield pointwise[0], StageShape(rank, rank, (3, 3)), pointwise[1]
    yield pointwise[0], StageShape(rank, rank, (3, 3), rank), pointwise[1]


def proposals(layers, network, noise=0.0):
    """Chains of all 3x3 layers, at what RATES say with log-normal noise."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, layer in layers.items():
        if layer.shape.kernel_size != (3, 3):
            continue
        found[name] = []
        for chain in [(), *(chain for rank in range(2, 20) for chain in chains(layer.shape, rank))]:
            factor = math.exp(noise * torch.randn((), generator=generator).item())
            cost = factor * float(work(*sizes(layer, network.get_submodule(name), chain)) @ RATES)
            found[name].append(Proposal("some", (), 0.0, chain, cost, 0.0, 0.0))
    return found


def distance(some, others):
    """Root mean square of the logarithms' differences."""
    pairs = [(a.cost, b.cost) for name in some for a, b in zip(some[name], others[name], strict=True)]
    return math.sqrt(sum(math.log(a / b) ** 2 for a, b in pairs) / len(pairs))


def test_rates_satisfy_the_conditions_of_their_optimum():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(40, 5, generator=generator, dtype=torch.float64) * torch.tensor([1e6, 1.0, 1e3, 1.0, 1e-3])
    costs = features[:, :3] @ torch.tensor([1e-6, 2.0, 1e-3], dtype=torch.float64)
    costs *= torch.exp(0.3 * torch.randn(40, generator=generator, dtype=torch.float64))
    rates = fit([features[:10], features[10:]], [costs[:10], costs[10:]])
    rows = features / costs[:, None]
    weights = torch.tensor([1 / 10] * 10 + [1 / 30] * 30, dtype=torch.float64)
    slope = (rows * rows.square().sum(dim=0).rsqrt()).T @ (weights * (rows @ rates - 1))
    assert (rates >= 0).all()
    assert (rates == 0).any()
    assert (rates > 0).any()
    assert slope[rates > 0].abs().max() < 1e-12
    assert slope[rates == 0].min() > 0


@pytest.mark.parametrize("cost", [0.0, -1.0, math.nan, math.inf])
def test_costs_that_are_none_are_refused(network, layers, cost):
    exact = proposals(layers, network)
    name = next(iter(exact))
    exact[name][-1] = replace(exact[name][-1], cost=cost)
    with pytest.raises(ConfigurationError, match=f"above 0, but one of layer {name!r} is {cost}"):
        smooth(exact, layers, network)


def test_what_the_model_explains_stays(network, layers):
    exact = proposals(layers, network)
    assert len(exact) > 1
    assert distance(smooth(exact, layers, network), exact) < 1e-3


def test_noise_is_halved(network, layers):
    exact, noisy = proposals(layers, network), proposals(layers, network, noise=0.3)
    assert distance(noisy, exact) > 0.25
    assert distance(smooth(noisy, layers, network), exact) < 0.6 * distance(noisy, exact)


def test_only_choices_by_hand_may_cost_more_than_the_layer(network, layers):
    noisy = proposals(layers, network, noise=0.3)
    everything = smooth(noisy, layers, network)
    cheaper = smoothed({name: Choices(dense, tuple(rest)) for name, (dense, *rest) in noisy.items()}, layers, network)
    for name, of_layer in everything.items():
        assert [each.chain for each in of_layer] == [each.chain for each in noisy[name]]
        assert cheaper[name].free == (of_layer[0], *(each for each in of_layer if each.cost < of_layer[0].cost))
    assert len(cheaper["0"].free) < len(everything["0"])
    dearest = {name: max(rest, key=lambda each: each.cost) for name, (_, *rest) in noisy.items()}
    by_hand = {name: Choices(of_layer[0], by_hand=dearest[name]) for name, of_layer in noisy.items()}
    found = smoothed(by_hand, layers, network)
    assert all(found[name].by_hand.chain == dearest[name].chain for name in noisy)
    assert any(each.by_hand.cost > each.dense.cost for each in found.values())
