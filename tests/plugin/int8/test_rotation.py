# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Chains in another basis compute the same, and rounding between their stages costs less."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import lowrank_plugin
from lowrank_plugin.errors import LowRankError
from lowrank_plugin.int8.rotation import balanced, spreading

DECOMPOSERS = {"svd": 16, "spatial_svd": 16, "tucker2": [16, 16], "tucker2_spatial": [16, 16, 16]}


def compressed(
    network: nn.Module, images: list[Tensor], decomposer: str, rank: object, **settings: object
) -> nn.Module:
    layers = {"1.conv1": rank, "1.conv2": rank, "3.conv2": rank}
    return lowrank_plugin.decompose(network, images, ranks=layers, decomposers=[decomposer], **settings)


def between(model: nn.Module, images: list[Tensor], name: str = "1.conv2.0") -> Tensor:
    """What a stage puts out, [channels, values]."""
    seen = []
    stage = model.get_submodule(name)
    handle = stage.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        for batch in images:
            model(batch)
    handle.remove()
    return torch.cat(seen).movedim(1, 0).flatten(1)


def rounded(tensor: Tensor) -> Tensor:
    """To 8 bits, with one step for all channels."""
    step = tensor.abs().max() / 127
    return (tensor / step).round() * step


@pytest.mark.parametrize("decomposer", DECOMPOSERS)
def test_the_network_computes_the_same(decomposer, network, images):
    small = compressed(network, images, decomposer, DECOMPOSERS[decomposer])
    state = copy.deepcopy(small.state_dict())
    rotated = lowrank_plugin.rotate_chains(small, images)
    with torch.no_grad():
        torch.testing.assert_close(rotated(images[0]), small(images[0]), rtol=1e-4, atol=1e-5)
    assert not torch.equal(rotated.get_submodule("1.conv2.0").weight, small.get_submodule("1.conv2.0").weight)
    assert all(torch.equal(value, state[name]) for name, value in small.state_dict().items())
    assert lowrank_plugin.report(rotated).to_dict() == lowrank_plugin.report(small).to_dict()
    assert not any(module._forward_hooks for module in rotated.modules())
    first, second = (rotated.get_submodule(f"1.conv2.{place}").weight.square().mean() for place in (0, 1))
    if len(rotated.get_submodule("1.conv2")) == 2:
        torch.testing.assert_close(first, second)
    assert lowrank_plugin.rotate_chains(small, images, inplace=True) is small


@pytest.mark.parametrize("decomposer", ["svd", "spatial_svd", "tucker2"])
def test_channels_are_of_one_size_and_rounding_costs_less(decomposer, network, images):
    small = compressed(network, images, decomposer, DECOMPOSERS[decomposer])
    rotated = lowrank_plugin.rotate_chains(small, images)
    errors = []
    for model in (small, rotated):
        inner = between(model, images)
        sizes = inner.square().mean(dim=1)
        errors.append(float(sizes.max() / sizes.min()))
        stage = model.get_submodule("1.conv2.1")
        # as one map: neighbours do not matter for noise
        shaped = inner.reshape(1, len(inner), 16, -1)
        with torch.no_grad():
            errors.append(float((stage(rounded(shaped)) - stage(shaped)).square().mean()))
    unequal, noise, equal, less = errors
    assert equal < 1.01 < 2 < unequal
    assert less < noise / 1.5


@pytest.mark.parametrize("size", [1, 2, 8, 12, 15, 64, 168])
def test_spreading_is_orthogonal_and_flat(size):
    matrix = spreading(size)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(size, dtype=torch.float64))
    assert float(matrix.abs().max()) <= (2 / size) ** 0.5 + 1e-9
    if size & (size - 1) == 0:
        torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size**-0.5))


def test_no_other_basis_is_better():
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(16, 40, dtype=torch.float64, generator=generator) for _ in range(2)]
    moment, reading = (factor @ torch.logspace(0, -3, 40).double().diag() @ factor.mT for factor in factors)

    def noise(there: Tensor) -> float:
        back = torch.linalg.inv(there)
        return float((there @ moment @ there.mT).diagonal().max() * (back.mT @ reading @ back).trace())

    there, back = balanced(moment, reading)
    torch.testing.assert_close(there @ back, torch.eye(16, dtype=torch.float64))
    torch.testing.assert_close(there @ moment @ there.mT, back.mT @ reading @ back)
    roots = torch.linalg.eigvals(moment @ reading).real.sqrt()
    assert noise(there) == pytest.approx(float(roots.sum()) ** 2 / 16)
    for _ in range(20):
        other = there + 0.1 * torch.randn(16, 16, dtype=torch.float64, generator=generator)
        assert noise(other) > noise(there)


def test_singular_moments():
    """A tensor without any variance in some directions, and one that is not read at all."""
    moment = torch.diag(torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    for reading in (torch.eye(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)):
        there, back = balanced(moment, reading)
        torch.testing.assert_close(there @ back, torch.eye(4, dtype=torch.float64))


def test_linear_layers_and_inner_biases():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 24))
    x = torch.randn(5, 7, 24)
    small = lowrank_plugin.decompose(model, [x], ranks={"0": 8})
    small[0][0].bias = nn.Parameter(torch.randn(8))
    with torch.no_grad():
        rotated = lowrank_plugin.rotate_chains(small, [x])
        torch.testing.assert_close(rotated(x), small(x), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_rotated_is_left_alone(network, images):
    depthwise = compressed(network, images, "cpd", 16)
    half = compressed(network, images, "svd", 16).to(torch.bfloat16)
    for model, data in ((depthwise, images), (half, [batch.bfloat16() for batch in images])):
        rotated = lowrank_plugin.rotate_chains(model, data)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in rotated.state_dict().items())


def test_a_model_without_chains(network, images):
    with pytest.raises(LowRankError, match="decompose"):
        lowrank_plugin.rotate_chains(network, images)
