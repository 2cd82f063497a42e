# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What an idiom is, and the parts that most of them are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 32
BATCHES, SAMPLES = 4, 16


@dataclass(frozen=True)
class Idiom:
    """A way to write a network.

    :param make: builds it.
    :param batch: makes a batch of its inputs from a generator.
    :param dense: layers that cannot be compressed, and a part of the reason.
    :param copied: whether ``copy.deepcopy`` can copy it.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Any]
    dense: Mapping[str, str] = field(default_factory=dict)
    copied: bool = True

    def network(self) -> nn.Module:
        """The network, the same at every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make()

    def batches(self) -> list[Any]:
        """Its calibration data, the same at every call."""
        generator = torch.Generator().manual_seed(1)
        return [self.batch(generator) for _ in range(BATCHES)]


IDIOMS: dict[str, Idiom] = {}
PAST = "it is reached past the module tree"


def vectors(generator: torch.Generator) -> Tensor:
    """[16, 32], correlated."""
    return torch.randn(SAMPLES, 8, generator=generator) @ torch.randn(8, WIDTH, generator=generator)


def images(generator: torch.Generator) -> Tensor:
    """[16, 3, 8, 8], smooth."""
    return nn.functional.interpolate(torch.randn(SAMPLES, 3, 4, 4, generator=generator), 8, mode="bilinear")


def sequences(generator: torch.Generator) -> Tensor:
    """[16, 6, 32]."""
    return torch.randn(SAMPLES, 6, WIDTH, generator=generator)


def tokens(generator: torch.Generator) -> Tensor:
    """[16, 6], integers."""
    return torch.randint(0, 40, (SAMPLES, 6), generator=generator)


def idiom(batch: Callable[[torch.Generator], Any] = vectors, **more: Any) -> Callable[[Any], Any]:
    """Put a class or a function that makes a network into the table, under its name."""

    def enter(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        IDIOMS[make.__name__] = Idiom(make, batch, **more)
        return make

    return enter


def linear(out: int = WIDTH) -> nn.Linear:
    """A layer that is worth compressing."""
    return nn.Linear(WIDTH, out)


def conv(inputs: int = 16, out: int = 16) -> nn.Conv2d:
    """Likewise."""
    return nn.Conv2d(inputs, out, 3, padding=1)


class Two(nn.Module):
    """Two layers, the beginning of most idioms."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = linear(), linear()

    def forward(self, x: Tensor) -> Any:
        return self.b(self.a(x).relu())


def after_a_run(model: nn.Module, batch: Callable[[torch.Generator], Any] = vectors) -> nn.Module:
    """As it is once somebody has run it."""
    model(batch(torch.Generator().manual_seed(2)))
    return model
