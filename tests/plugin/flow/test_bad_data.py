# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Calibration data that says little: networks come out whole, and what happened is said."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import lowrank_plugin

SECTION = {"budget": {"macs": 0.6}, "rank_multiple": 4}


class Kept(nn.Module):
    """Passes some channels on."""

    def __init__(self, which: slice) -> None:
        super().__init__()
        self.which = which

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.which]


def finite(model, x):
    with torch.no_grad():
        return bool(torch.isfinite(model(x)).all())


def test_one_image_is_enough_to_go_on(network, images, caplog):
    one = [images[0][:1]]
    small = lowrank_plugin.decompose(network, one, **SECTION)
    assert finite(small, images[1])
    assert "Few samples: layers '2', '3.conv1', '3.conv2' and 1 more got" in caplog.text


def test_constant_images_leave_no_covariance_but_a_network(network):
    black = [torch.zeros(8, 3, 16, 16)]
    small = lowrank_plugin.decompose(network, black, **SECTION)
    x = black[0]
    assert finite(small, x)
    torch.testing.assert_close(small(x), network(x), rtol=1e-3, atol=1e-3)


def test_dead_channels_are_no_obstacle(network, images):
    dead = copy.deepcopy(network)
    with torch.no_grad():
        dead[1].conv1.weight[::2] = 0
        dead[1].bn1.bias[::2] = -1
    by_svd = {"decomposers": ["svd"], "calibration": {"positions": 1e9}}
    small = lowrank_plugin.decompose(dead, images, ranks={"1.conv2": 8}, **by_svd, **SECTION)
    assert finite(small, images[0])
    found = lowrank_plugin.report(small).to_dict()["layers"]["1.conv2"]
    assert found["rank"] == [8]
    # half of its inputs are always zero: those that are not are approximated as well as if they were alone
    alive = copy.deepcopy(dead)
    alive[1].conv2 = nn.Sequential(Kept(slice(1, None, 2)), nn.Conv2d(12, 24, 3, padding=1))
    with torch.no_grad():
        alive[1].conv2[1].weight.copy_(dead[1].conv2.weight[:, 1::2])
        alive[1].conv2[1].bias.copy_(dead[1].conv2.bias)
    torch.testing.assert_close(alive(images[0]), dead(images[0]))
    alone = lowrank_plugin.decompose(alive, images, ranks={"1.conv2.1": 8}, **by_svd)
    error = lowrank_plugin.report(alone).to_dict()["layers"]["1.conv2.1"]["error"]
    assert 0 < found["error"] == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_with_other_channels_are_refused(network, images, channels):
    wrong = [torch.zeros(2, channels, 16, 16)]
    with pytest.raises(lowrank_plugin.errors.CalibrationError, match=r"tensors of shapes \[\(2, "):
        lowrank_plugin.collect_statistics(network, wrong)


def test_images_of_another_size_give_statistics_too(network, images):
    small_images = [batch[..., :10, :10] for batch in images]
    seen = lowrank_plugin.collect_statistics(network, small_images)
    made = lowrank_plugin.plan(network, statistics=seen, example_input=images[0], **SECTION)
    assert made["model"]["macs"][1] <= 0.6 * made["model"]["macs"][0]
