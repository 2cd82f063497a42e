# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A small network with data, for the tests of the host for NNCF 2."""

from __future__ import annotations

import os

# NNCF reads them on import: tests must not report usage, and compiling its extension may take minutes
os.environ.setdefault("NNCF_CI", "1")
os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "900")

from collections.abc import Callable
from typing import Any

import nncf
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lowrank_nncf  # noqa: F401 - switches on tracing, imports nncf.torch and makes the algorithm known


class SmallNet(nn.Module):
    """Three convolutions, two of them in a residual block, normalisation and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32))
        self.conv = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.conv(torch.relu(self.block(x)))
        return self.head(x.mean(dim=(2, 3)))


@pytest.fixture
def images() -> Tensor:
    """[64, 3, 12, 12]; neighbouring pixels are alike, as in photographs."""
    noise = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(noise, size=12, mode="bilinear")


@pytest.fixture
def fresh() -> Callable[[], nn.Module]:
    """Makes the network as its constructor does, always with the same weights."""

    def make() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return SmallNet()

    return make


@pytest.fixture
def model(fresh: Callable[[], nn.Module], images: Tensor) -> nn.Module:
    """In training mode, with normalisation that has seen the images."""
    net = fresh()
    with torch.no_grad():
        net(images)
    return net


@pytest.fixture
def loader(images: Tensor) -> DataLoader:
    """The images in batches of eight, with labels that must be ignored."""
    return DataLoader(TensorDataset(images, torch.zeros(64)), batch_size=8)


@pytest.fixture
def compress(loader: DataLoader) -> Callable[..., tuple[Any, nn.Module]]:
    """Compress as users of NNCF 2 do."""

    def run(model: nn.Module, *sections: Any, data: bool = True, state: Any = None, **rest: Any) -> Any:
        config = {"input_info": {"sample_size": [1, 3, 12, 12]}, "compression": list(sections), **rest}
        made = nncf.NNCFConfig.from_dict(config)
        if data:
            nncf.torch.register_default_init_args(made, loader)
        return nncf.torch.create_compressed_model(model, made, compression_state=state, dump_graphs=False)

    return run
