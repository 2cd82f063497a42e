# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Every geometry: patches, positions, full-rank exactness, the predicted output error, and the way back."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin.geometries import convolutions
from torch import nn

import lowrank_plugin
from lowrank_hooks import Factorization, Stage
from lowrank_plugin.layers.adapters import ConvAdapter, LinearAdapter
from lowrank_plugin.layers.survey import survey
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
from lowrank_plugin.settings import Settings
from lowrank_plugin.statistics.collection import collect

FEW = settings(max_examples=60, deadline=None, derandomize=True)


def randomized(layer: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def batch(layer: nn.Module, size: tuple[int, ...], samples: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(samples, layer.in_channels, *size, generator=generator)


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-30))


@FEW
@given(convolutions())
def test_patches_times_kernel_are_the_output(case):
    conv, size = case
    conv, adapter = randomized(conv, 0).double(), ConvAdapter()
    x = batch(conv, size).double()
    axes = len(size)
    patches = adapter.patches(conv, x).flatten(-axes - 1)  # [B, *out, G, S*K]
    product = torch.einsum("...gd,gtd->...gt", patches, adapter.kernel(conv).flatten(2)).flatten(-2)
    bias = 0 if conv.bias is None else conv.bias
    expected = conv(x)
    torch.testing.assert_close((product + bias).movedim(-1, 1), expected)
    torch.testing.assert_close(adapter.outputs(conv, expected).flatten(-2).movedim(-1, 1), expected)


def chains(kernel: torch.Tensor) -> list[Factorization]:
    """Exact chains with different owners of the axes: kxk first, last and between, and one axis after the other."""
    groups, out, inputs, *taps = kernel.shape
    ones = [1] * len(taps)
    before = torch.eye(inputs, dtype=kernel.dtype).expand(groups, -1, -1).reshape(groups, inputs, inputs, *ones)
    after = torch.eye(out, dtype=kernel.dtype).expand(groups, -1, -1).reshape(groups, out, out, *ones)
    found = [
        Factorization((Stage(kernel), Stage(after))),
        Factorization((Stage(before), Stage(kernel))),
        Factorization((Stage(before), Stage(kernel), Stage(after))),
    ]
    if len(taps) == 2:
        kh = taps[0]
        columns = torch.eye(inputs * kh, dtype=kernel.dtype).reshape(1, inputs * kh, inputs, kh, 1)
        rows = kernel.flatten(2, 3).unsqueeze(3)  # [G, T, S*kh, 1, kw]
        found.append(Factorization((Stage(columns.expand(groups, *columns.shape[1:])), Stage(rows))))
    return found


@FEW
@given(convolutions())
def test_exact_chains_compute_the_layer_and_come_back(case):
    conv, size = case
    conv, adapter = randomized(conv, 1).double(), ConvAdapter()
    x = batch(conv, size).double()
    expected = conv(x)
    for chain in chains(adapter.kernel(conv)):
        torch.testing.assert_close(chain.to_kernel(), adapter.kernel(conv))
        built = adapter.build(conv, chain, conv.bias)
        outputs = []
        for stage in built:
            stage.register_forward_hook(lambda m, a, out, seen=outputs: seen.append(out[0, 0].numel() * out.shape[0]))
        torch.testing.assert_close(built(x), expected)
        assert adapter.positions(conv, chain.shapes, x, expected) == tuple(outputs)
        dense = adapter.to_dense(built)
        assert str(dense) == str(conv) or conv.padding_mode != "zeros"
        torch.testing.assert_close(dense(x), expected)


RANKS = {"svd": 1, "tucker2": 2, "spatial_svd": 1, "tucker2_spatial": 3, "cpd": 1, "tucker2_cpd": 3}


def takes(decomposer: str, conv: nn.Module) -> bool:
    """Whether a decomposer is meant for a convolution."""
    if conv.in_channels == conv.groups:
        return False
    if decomposer in ("spatial_svd", "tucker2_spatial"):
        return len(conv.kernel_size) == 2 and min(conv.kernel_size) > 1
    return decomposer == "svd" or max(conv.kernel_size) > 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(convolutions(), st.sampled_from(("svd", "tucker2", "spatial_svd", "tucker2_spatial")))
def test_full_rank_is_exact_in_float32(case, decomposer):
    conv, size = case
    if not takes(decomposer, conv):
        return
    conv = randomized(conv, 2)
    x = batch(conv, size)
    full = [10_000] * RANKS[decomposer]
    chain = lowrank_plugin.decompose(
        nn.Sequential(conv), [x], ranks={"0": full}, decomposers=[decomposer], repair="none", norm="frobenius"
    )
    assert isinstance(chain[0], nn.Sequential)
    with torch.no_grad():
        assert relative(chain(x), conv(x)) < 1e-5


@settings(max_examples=60, deadline=None, derandomize=True)
@given(convolutions(), st.sampled_from(tuple(RANKS)), st.integers(1, 3))
def test_predicted_output_error_is_the_measured_one(case, decomposer, rank):
    conv, size = case
    if not takes(decomposer, conv):
        return
    conv = randomized(conv, 3).double()
    x = batch(conv, size, samples=24).double()
    ranks = [rank] * RANKS[decomposer]
    chain = lowrank_plugin.decompose(
        nn.Sequential(conv), [x[:8], x[8:]], ranks={"0": ranks}, decomposers=[decomposer], repair="none",
        calibration={"samples": 24, "positions": 1e9},
    )  # fmt: skip
    entry = lowrank_plugin.report(chain).to_dict()["layers"]["0"]
    with torch.no_grad():
        exact, small = conv(x), chain(x)
        centred = exact - exact.mean(dim=[d for d in range(exact.dim()) if d != 1], keepdim=True)
        measured = float((small - exact).norm() / centred.norm())
        shift = (small - exact).movedim(1, 0).flatten(1).mean(dim=1).abs().max()
    assert entry["error"] == pytest.approx(measured, rel=1e-3, abs=1e-6)
    assert float(shift) < 1e-8 * float(exact.abs().max())


@pytest.mark.parametrize("shape", [(5, 12), (2, 7, 12), (2, 3, 4, 12)], ids=str)
def test_linear_layers_take_any_leading_axes(shape):
    linear, x = randomized(nn.Linear(12, 9), 4), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    small = lowrank_plugin.decompose(nn.Sequential(linear), [x], ranks={"0": 9}, repair="none")
    with torch.no_grad():
        assert relative(small(x), linear(x)) < 1e-5
    assert LinearAdapter().positions(linear, [], x, linear(x)) == ()


def test_unbatched_convolution_input():
    conv, x = randomized(nn.Conv2d(4, 6, 3), 5), torch.randn(4, 9, 9, generator=torch.Generator().manual_seed(0))
    small = lowrank_plugin.decompose(nn.Sequential(conv), [x], ranks={"0": 6}, decomposers=["svd"], repair="moments")
    with torch.no_grad():
        assert relative(small(x), conv(x)) < 1e-4


@FEW
@given(convolutions(), st.integers(1, 5))
def test_covariance_equals_numpy_and_drawing_keeps_it(case, parts):
    conv, size = case
    model = nn.Sequential(copy.deepcopy(conv))
    x = batch(conv, size, samples=6)
    if conv.in_channels == conv.groups:
        return
    found = survey(model, x, Settings(ranks={"0": (1,)}), manager().registered(LAYER_ADAPTERS))
    moments = collect(model, found.layers, list(x.split(parts)), positions=1e9)["0"].inputs
    vectors = ConvAdapter().patches(conv, x.double()).flatten(-len(size) - 1).flatten(0, len(size))
    for group in range(conv.groups):
        expected = torch.atleast_2d(torch.cov(vectors[:, group].T, correction=0))
        torch.testing.assert_close(moments.covariance[group], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(moments.mean[group], vectors[:, group].mean(dim=0), rtol=1e-5, atol=1e-5)
    assert torch.equal(moments.covariance, moments.covariance.mT)
