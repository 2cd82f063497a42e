# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Fixtures of the core's tests."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn


class Block(nn.Module):
    """A residual block, so that a wrong geometry cannot hide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.conv2(torch.relu(self.bn1(self.conv1(x)))))


@pytest.fixture
def network() -> nn.Module:
    """A small residual network in eval mode: 3x16x16 in, 10 out."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), Block(24), nn.Conv2d(24, 32, 3, stride=2, padding=1), Block(32),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip


@pytest.fixture
def images() -> list[torch.Tensor]:
    """Four batches of eight smooth random images."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(4, 8, 3, 6, 6, generator=generator)
    return [nn.functional.interpolate(batch, 16, mode="bilinear") for batch in coarse]


@pytest.fixture
def untouched(network):
    """Check at the end that the network is bit for bit what it was, in mode and hooks too."""
    state, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    classes = [type(module) for module in network.modules()]
    yield network
    assert [module.training for module in network.modules()] == modes
    assert [type(module) for module in network.modules()] == classes
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())
    for (name, now), (other, before) in zip(network.state_dict().items(), state.items(), strict=True):
        assert name == other
        assert torch.equal(now, before), name
