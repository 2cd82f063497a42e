# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Rounded weights are on their grids, and layers put out nearly what they did before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import lowrank_plugin
from lowrank_plugin.errors import CalibrationError
from lowrank_plugin.int8.rounding import Grid, round_weights, rounded


def grid_of(weight: Tensor, levels: int = 63) -> Grid:
    """Symmetric, as wide as the largest weight of each channel; float64."""
    bound = weight.detach().double().flatten(1).abs().amax(dim=1, keepdim=True)
    return Grid(bound / levels, -bound, bound)


def moment(width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(4 * width, width, generator=generator, dtype=torch.float64)
    mixed = vectors @ torch.randn(width, width, generator=generator, dtype=torch.float64) + 4 * vectors[:, :1]
    return mixed.mT @ mixed / len(mixed)


def gptq(weight: Tensor, seen: Tensor, grid: Grid) -> Tensor:
    """As published: the remaining columns are updated with rows of the inverse's Cholesky factor."""
    weight, chosen = weight.clone(), torch.zeros_like(weight)
    factor = torch.linalg.cholesky(torch.linalg.inv(seen), upper=True)
    for place in range(weight.shape[1]):
        chosen[:, place] = grid.nearest(weight[:, place, None])[:, 0]
        error = (weight[:, place] - chosen[:, place]) / factor[place, place]
        weight[:, place:] -= error[:, None] * factor[place, place:]
    return chosen


def errors(difference: Tensor, seen: Tensor) -> Tensor:
    return ((difference @ seen) * difference).sum(dim=1)


@pytest.mark.parametrize("width", [1, 5, 300])
def test_equals_the_published_method(width: int) -> None:
    weight, seen = torch.randn(6, width, generator=torch.Generator().manual_seed(1)).double(), moment(width)
    order = seen.diagonal().argsort(descending=True)
    wanted = torch.empty_like(weight)
    wanted[:, order] = gptq(weight[:, order], seen[order][:, order], grid_of(weight))
    torch.testing.assert_close(rounded(weight, seen, grid_of(weight)), wanted)


def test_no_choice_is_better_than_the_best() -> None:
    weight, seen = torch.randn(8, 4, generator=torch.Generator().manual_seed(2)).double(), moment(4)
    grid = grid_of(weight, 7)
    found = errors(weight - rounded(weight, seen, grid), seen)
    steps = torch.cartesian_prod(*[torch.arange(-7.0, 8.0, dtype=torch.float64)] * 4)
    best = torch.stack([errors(row - steps * step, seen).min() for row, step in zip(weight, grid.step, strict=True)])
    assert bool((found >= best * (1 - 1e-9)).all())


def test_is_better_than_the_nearest_values() -> None:
    weight, seen = torch.randn(8, 40, generator=torch.Generator().manual_seed(2)).double(), moment(40)
    narrow = grid_of(weight)
    # where values meet the end of the grid, others cannot make up for each other
    grid = Grid(narrow.step, 2 * narrow.lowest, 2 * narrow.highest)
    chosen, usual = (errors(weight - each, seen).sum() for each in (rounded(weight, seen, grid), grid.nearest(weight)))
    assert float(chosen) < 0.5 * float(usual)


def test_independent_inputs_take_the_nearest_values() -> None:
    weight = torch.randn(5, 9, generator=torch.Generator().manual_seed(3)).double()
    scale = torch.linspace(1, 3, 9, dtype=torch.float64).diag()
    assert torch.equal(rounded(weight, scale, grid_of(weight)), grid_of(weight).nearest(weight))


def test_zeros_stay_and_no_value_leaves_the_grid() -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(4)).double()
    weight[:, ::3] = 0
    grid = grid_of(weight)
    found = rounded(weight, moment(40), grid)
    assert not bool(found[:, ::3].any())
    assert bool(((found >= grid.lowest) & (found <= grid.highest)).all())
    torch.testing.assert_close(found / grid.step, (found / grid.step).round())


def outputs(model: nn.Module, name: str, images: list[Tensor]) -> Tensor:
    """What a layer puts out, [channels, values]."""
    seen: list[Tensor] = []
    layer = model.get_submodule(name)
    with layer.register_forward_hook(lambda module, args, output: seen.append(output)), torch.no_grad():
        for batch in images:
            model(batch)
    return torch.cat(seen).movedim(1, 0).flatten(1)


@pytest.mark.parametrize("name", ["0", "1.conv1", "3.conv2", "6"])
def test_the_layer_puts_out_nearly_the_same(name: str, network: nn.Module, images: list[Tensor]) -> None:
    images = [batch + 1 for batch in images]
    before = outputs(network, name, images)
    nearest, chosen = copy.deepcopy(network), copy.deepcopy(network)
    layer = nearest.get_submodule(name)
    grid = grid_of(layer.weight)
    with torch.no_grad():
        layer.weight.copy_(grid.nearest(layer.weight.double().flatten(1)).reshape(layer.weight.shape))
    round_weights(chosen, {name: grid}, images)
    found, usual = outputs(chosen, name, images), outputs(nearest, name, images)
    for other, parameter in chosen.named_parameters():
        if other.rpartition(".")[0] != name:
            assert torch.equal(parameter, network.get_parameter(other))
    assert not any(module._forward_hooks for module in chosen.modules())
    if layer.bias is None:
        assert float((found - before).square().sum()) < 0.7 * float((usual - before).square().sum())
    else:
        shift, usually = (float((each - before).mean(dim=1).norm()) for each in (found, usual))
        assert shift < 0.5 * usually
        assert float((found - before).var(dim=1).sum()) < 0.7 * float((usual - before).var(dim=1).sum())


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (6, 6)])
def test_groups_are_rounded_one_by_one(channels: int, groups: int, images: list[Tensor]) -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Conv2d(3, channels, 1), nn.Conv2d(channels, 6, 3, groups=groups)).eval()
    weight = whole[1].weight.detach().clone().double().unflatten(0, (groups, -1)).flatten(2)
    grid = grid_of(whole[1].weight)
    with torch.no_grad():
        patches = torch.cat([nn.functional.unfold(whole[0](batch), 3).mT.flatten(0, 1) for batch in images]).double()
    round_weights(whole, {"1": grid}, images)
    found = whole[1].weight.detach().double().unflatten(0, (groups, -1)).flatten(2)
    nearest = grid.grouped(groups).nearest(weight)
    chosen = usual = 0.0
    for group, part in enumerate(patches.unflatten(1, (groups, -1)).unbind(1)):
        seen = part.T.cov()
        chosen += float(errors(weight[group] - found[group], seen).sum())
        usual += float(errors(weight[group] - nearest[group], seen).sum())
    assert chosen < 0.7 * usual


class Twice(nn.Module):
    """Calls one of its layers twice."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(self.once(x)))


def test_all_calls_of_a_layer_count() -> None:
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(64, 6) * torch.tensor([1.0, 0, 0, 0, 0, 0])
    weight = model.twice.weight.detach().double()
    with torch.no_grad():
        middle = model.once(x)
        inputs = torch.cat([middle, model.twice(middle)]).double()
    grid = grid_of(weight)
    round_weights(model, {"twice": grid}, [x])
    chosen, usual = (weight - each for each in (model.twice.weight.detach().double(), grid.nearest(weight)))
    assert float(errors(chosen, inputs.T.cov()).sum()) < 0.3 * float(errors(usual, inputs.T.cov()).sum())


@pytest.mark.parametrize("batch", [torch.zeros(8, 6), torch.full((8, 6), torch.inf)])
def test_inputs_that_say_nothing(batch: Tensor) -> None:
    """Zeros: the nearest values; what is not finite: the layer stays as it is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6))
    before, grid = model[0].weight.detach().clone(), grid_of(model[0].weight)
    round_weights(model, {"0": grid}, [batch])
    wanted = grid.nearest(before.double()).float() if bool(batch.isfinite().all()) else before
    assert torch.equal(model[0].weight, wanted)


def test_without_data(network: nn.Module, untouched: nn.Module) -> None:
    with pytest.raises(CalibrationError, match="empty"):
        round_weights(network, {"0": grid_of(network[0].weight)}, [])


def test_chains_are_layers_too(network: nn.Module, images: list[Tensor]) -> None:
    small = lowrank_plugin.decompose(network, images, ranks={"1.conv2": 16}, decomposers=["svd"])
    names = ("1.conv2.0", "1.conv2.1")
    grids = {name: grid_of(small.get_submodule(name).weight) for name in names}
    round_weights(small, grids, images)
    for name in names:
        values = small.get_submodule(name).weight.detach().double().flatten(1)
        torch.testing.assert_close(values, grids[name].nearest(values))
