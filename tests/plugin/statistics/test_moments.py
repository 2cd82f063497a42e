# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Streaming moments against numpy, and what collecting leaves behind."""

from __future__ import annotations

import functools
import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin.geometries import convolutions

from lowrank_plugin.errors import CalibrationError
from lowrank_plugin.layers.adapters import ConvAdapter
from lowrank_plugin.layers.survey import survey
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
from lowrank_plugin.settings import Settings
from lowrank_plugin.statistics.collection import collect
from lowrank_plugin.statistics.moments import ChannelStatistics, Moments
from lowrank_plugin.statistics.sampling import draw, draw_positions


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(1, 2), st.integers(1, 9), st.floats(-1e3, 1e3))
def test_streaming_equals_at_once(sizes, groups, width, offset):
    generator = torch.Generator().manual_seed(sum(sizes))
    parts = [torch.randn(size, groups, width, generator=generator, dtype=torch.float64) + offset for size in sizes]
    together = torch.cat(parts)
    moments = Moments()
    for part in parts:
        moments.add(part)
    if not len(together):
        with pytest.raises(CalibrationError, match="No vectors"):
            _ = moments.covariance
        return
    for group in range(groups):
        expected = torch.atleast_2d(torch.cov(together[:, group].T, correction=0))
        torch.testing.assert_close(moments.covariance[group], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(moments.variance[group], expected.diagonal(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moments.mean, together.mean(dim=0), rtol=1e-12, atol=1e-9)
    channels = functools.reduce(
        operator.add, (ChannelStatistics.of(part, channel_axes=2) for part in parts if len(part))
    )
    torch.testing.assert_close(channels.mean, together.flatten(1).mean(dim=0), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(channels.variance, together.flatten(1).var(dim=0, correction=0), rtol=1e-9, atol=1e-9)


def test_wide_covariances_are_put_together_from_blocks():
    vectors = torch.randn(50, 1, 700, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = Moments()
    moments.add(vectors)
    torch.testing.assert_close(moments.covariance[0], torch.cov(vectors[:, 0].T, correction=0))


def test_a_large_mean_costs_no_digits():
    vectors = torch.randn(4000, 1, 3, generator=torch.Generator().manual_seed(0)) + 1e4
    moments = Moments()
    for part in vectors.split(500):
        moments.add(part)
    expected = torch.cov(vectors[:, 0].double().T, correction=0)
    torch.testing.assert_close(moments.covariance[0], expected, rtol=1e-4, atol=1e-4)


def surveyed(network, example):
    return survey(network, example, Settings(budget={"macs": 0.5}), manager().registered(LAYER_ADAPTERS))


def test_drawn_positions_estimate_the_full_covariance(network, images):
    layers = surveyed(network, images[0]).layers
    full = collect(network, layers, images, positions=1e9)
    some = collect(network, layers, images, positions=6, seed=3)
    again = collect(network, layers, images, positions=6, seed=3)
    assert some["1.conv1"].inputs.count < full["1.conv1"].inputs.count
    assert torch.equal(some["1.conv1"].inputs.covariance, again["1.conv1"].inputs.covariance)
    exact, estimate = full["1.conv1"].inputs.covariance, some["1.conv1"].inputs.covariance
    assert float((exact - estimate).norm() / exact.norm()) < 0.35


def test_single_images_give_what_batches_give(network, images):
    layers = surveyed(network, images[0]).layers
    whole = collect(network, layers, images, positions=1e9)
    single = collect(network, layers, list(torch.cat(images).split(1)), positions=1e9)
    for name in layers:
        assert single[name].inputs.count == whole[name].inputs.count
        torch.testing.assert_close(single[name].inputs.covariance, whole[name].inputs.covariance, rtol=1e-4, atol=1e-6)


def test_collecting_leaves_nothing_behind(untouched, images):
    handle = untouched[0].register_forward_hook(lambda module, args, output: None)
    collect(untouched, surveyed(untouched, images[0]).layers, images)
    assert list(untouched[0]._forward_hooks) == [handle.id]
    handle.remove()


def test_drawing_is_without_replacement_and_even():
    view = torch.arange(60).reshape(3, 4, 5)
    drawn = draw_positions(view, 2, 7, torch.Generator().manual_seed(0))
    assert drawn.shape == (7, 5)
    assert len({int(row[0]) for row in drawn}) == 7
    assert draw_positions(view, 2, 12, torch.Generator()).shape == (12, 5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(convolutions(), st.floats(0.1, 1.2))
def test_drawn_patches_are_patches_of_every_geometry(drawn, share):
    conv, size = drawn
    adapter, inputs = ConvAdapter(), torch.randn(3, conv.in_channels, *size, generator=torch.Generator().manual_seed(0))
    view, outputs = adapter.patches(conv, inputs), conv(inputs)
    axes = 1 + len(size)
    wanted = share * view.shape[:axes].numel()
    found = draw(adapter, conv, inputs, outputs, wanted, torch.Generator().manual_seed(1))
    expected = draw_positions(view, axes, wanted, torch.Generator().manual_seed(1))
    assert torch.equal(found, expected.flatten(2))
