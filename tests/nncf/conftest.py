# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A small network with data, for the tests of the NNCF host."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# NNCF reads them on import: tests must not report usage, and compiling its extension may take minutes
os.environ.setdefault("NNCF_CI", "1")
os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "900")

import nncf
import pytest
import torch
from torch import Tensor, nn

# Shared helpers are plain modules beside the tests: ``from untouched import state_of``.
sys.path.insert(0, str(Path(__file__).parent))


class SmallNet(nn.Module):
    """Two convolutions with a residual, normalisation and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.conv = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.norm(self.conv(x)))
        return self.head(x.mean(dim=(2, 3)))


@pytest.fixture
def images() -> Tensor:
    """[64, 3, 12, 12]; neighbouring pixels are alike, as in photographs."""
    noise = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(noise, size=12, mode="bilinear")


@pytest.fixture
def model(images: Tensor) -> nn.Module:
    """In training mode, with normalisation that has seen the images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SmallNet()
    with torch.no_grad():
        net(images)
    return net


@pytest.fixture
def dataset(images: Tensor) -> nncf.Dataset:
    """The images in batches of eight, with labels that must be ignored."""
    return nncf.Dataset([(batch, None) for batch in images.split(8)], lambda item: item[0])


@pytest.fixture
def fresh(model: nn.Module) -> nn.Module:
    """The network as its constructor makes it, with other weights."""
    made = type(model)()
    for parameter in made.parameters():
        nn.init.ones_(parameter)
    return made.eval()
