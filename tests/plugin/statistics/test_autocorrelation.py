# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Correlations of maps against the patches written out."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from plugin.geometries import convolutions
from torch import nn

from lowrank_plugin.layers.adapters import ConvAdapter
from lowrank_plugin.layers.survey import survey
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
from lowrank_plugin.settings import Settings
from lowrank_plugin.statistics.autocorrelation import Autocorrelation, Geometry
from lowrank_plugin.statistics.collection import collect, correlated
from lowrank_plugin.statistics.moments import Moments


def both_ways(conv, batches):
    geometry = Geometry.of(ConvAdapter(), conv, batches[0].shape, conv(batches[0]).shape)
    if geometry is None:
        return None, None
    direct, correlation = Moments(), Autocorrelation(geometry)
    for batch in batches:
        view = ConvAdapter().patches(conv, batch)
        direct.add(view.reshape(-1, view.shape[-2 - len(geometry.axes)], geometry.channels * geometry.taps))
        assert correlation.takes(batch)
        correlation.add(batch)
    return direct, correlation


@settings(max_examples=60, deadline=None, derandomize=True)
@given(convolutions())
def test_every_geometry_gives_the_moments_of_its_patches(drawn):
    conv, size = drawn
    generator = torch.Generator().manual_seed(0)
    shapes = [(count, conv.in_channels, *size) for count in (2, 1)]
    batches = [torch.randn(shape, generator=generator, dtype=torch.float64) + 3 for shape in shapes]
    direct, correlation = both_ways(conv.double(), batches)
    if correlation is None:
        assert any(step != 1 for step in conv.stride) or conv.padding_mode != "zeros"
        return
    found = correlation.moments()
    assert found.count == direct.count
    torch.testing.assert_close(found.mean, direct.mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.covariance, direct.covariance, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_single_precision_loses_no_more_digits_than_the_patches(offset):
    conv = nn.Conv2d(6, 4, 3, padding=1)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 6, 9, 9, generator=generator) + offset for _ in range(3)]
    exact, _ = both_ways(copy.deepcopy(conv).double(), [batch.double() for batch in batches])
    _, found = both_ways(conv, batches)
    error = (found.moments().covariance - exact.covariance).norm() / exact.covariance.norm()
    assert float(error) < 1e-6


def test_a_kernel_of_three_needs_twenty_nine_products():
    conv = nn.Conv2d(8, 8, 3, padding=1)
    geometry = Geometry.of(ConvAdapter(), conv, torch.Size([1, 8, 7, 7]), torch.Size([1, 8, 7, 7]))
    assert len(geometry.pieces) == 29
    # (7 + 6 + 5 + 6 + 5) ** 2 pairs of positions on a 7x7 map, one of each mirrored two
    assert geometry.multiplications == 8 * 8 * (29**2 + 7**2) // 2


def surveyed(network, example):
    return survey(network, example, Settings(budget={"macs": 0.5}), manager().registered(LAYER_ADAPTERS)).layers


def test_deep_narrow_maps_are_correlated_and_the_rest_drawn(network):
    layers = surveyed(network, torch.zeros(1, 3, 16, 16))
    modules = {name: network.get_submodule(name) for name in layers}
    chosen = {name for name, layer in layers.items() if correlated(layer, modules[name], 4, 12.0)}
    assert chosen == {"0", "1.conv1", "1.conv2", "3.conv1", "3.conv2"}
    assert not any(correlated(layer, modules[name], 10**6, 12.0) for name, layer in layers.items())


def test_inputs_of_another_size_are_taken_in_too(network, images):
    layers = surveyed(network, images[0])
    mixed = [images[0], images[1][..., :12]]
    layer, module = layers["1.conv1"], network[1].conv1
    assert correlated(layer, module, 16, 1e9)
    found = collect(network, layers, mixed, positions=1e9)["1.conv1"].inputs
    expected = Moments()
    for batch in mixed:
        view = layer.adapter.patches(module, network[0](batch).detach())
        expected.add(view.reshape(-1, 1, layer.shape.in_channels * layer.shape.taps))
    assert found.count == expected.count
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-5, atol=1e-6)
