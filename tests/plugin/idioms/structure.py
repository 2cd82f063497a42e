# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Where networks keep their layers: in the module tree, under several names, and past it."""

from __future__ import annotations

import functools
from collections import deque, namedtuple
from typing import Any

from plugin.idioms.base import (
    PAST,
    WIDTH,
    Two,
    conv,
    idiom,
    images,
    linear,
    tokens,
)
from torch import Tensor, nn


@idiom()
def plain_sequence() -> nn.Module:
    return nn.Sequential(linear(), nn.ReLU(), linear(10))


@idiom()
def layer_alone() -> nn.Module:
    return linear()


@idiom(images)
class ResidualWithNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.norm, self.head = conv(3), conv(), nn.BatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.norm(self.inner(x)).relu()).mean((2, 3)))


@idiom(images)
class UnetAlias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.up = conv(3), conv(), conv()
        self.encoder = nn.ModuleList([self.down1, self.down2])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.encoder:
            x = layer(x).relu()
        return self.up(x).mean((2, 3))


@idiom()
class ModuleListAlias(Two):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.a, self.b])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


@idiom()
class BlockAlias(nn.Module):
    """A whole block under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Two()
        self.teacher = nn.ModuleDict({"block": self.block, "head": linear()})

    def forward(self, x: Tensor) -> Tensor:
        return self.teacher["head"](self.block(x).relu())


@idiom()
class ModulesInDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"left": linear(), "right": linear()})

    def forward(self, x: Tensor) -> Tensor:
        return self.heads["left"](x).relu() + self.heads["right"](x)


@idiom(dense={"a": "shared", "b": "shared"})
class TiedLayers(Two):
    def __init__(self) -> None:
        super().__init__()
        self.b.weight = self.a.weight
        self.c = linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(super().forward(x))


@idiom(tokens, dense={"embedding": "", "head": "shared"})
class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(40, WIDTH), linear()
        self.head = nn.Linear(WIDTH, 40, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.embedding(x)))


class Pyramid(nn.Module):
    """Layers that are registered one by one, and that forward finds elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3)
        made = [conv() for _ in range(3)]
        for index, layer in enumerate(made):
            self.add_module(f"out{index}", layer)
        self.keep(made)

    def keep(self, made: list[nn.Conv2d]) -> None:
        raise NotImplementedError

    def layers(self) -> Any:
        return self.kept

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers():
            x = layer(x).relu()
        return x.mean((2, 3))


@idiom(images)
class PlainList(Pyramid):
    def keep(self, made: list[nn.Conv2d]) -> None:
        self.kept = made


@idiom(images)
class PlainTuple(Pyramid):
    def keep(self, made: list[nn.Conv2d]) -> None:
        self.kept = tuple(made)


@idiom(images)
class PlainDict(Pyramid):
    def keep(self, made: list[nn.Conv2d]) -> None:
        self.kept = {index: (layer, {"again": [layer]}) for index, layer in enumerate(made)}

    def layers(self) -> Any:
        return [entry["again"][0] for _, entry in self.kept.values()]


@idiom(images)
class ModulesAsKeys(Pyramid):
    def keep(self, made: list[nn.Conv2d]) -> None:
        self.kept = {layer: index for index, layer in enumerate(made)}


@idiom(images)
class PlainSet(Pyramid):
    def keep(self, made: list[nn.Conv2d]) -> None:
        self.kept, self.first = set(made), frozenset(made[:1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        outputs = sorted((layer(x) for layer in self.kept), key=lambda each: float(each.detach().sum()))
        return (sum(outputs) + next(iter(self.first))(x)).mean((2, 3))


Step = namedtuple("Step", ["layer", "scale"])


@idiom(images)
class NamedTuplesInDeque(Pyramid):
    def keep(self, made: list[nn.Conv2d]) -> None:
        self.kept = deque(Step(layer, 1.0) for layer in made)

    def layers(self) -> Any:
        return [step.layer for step in self.kept]


@idiom()
class HiddenAttribute(Two):
    """Not registered a second time on purpose."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "last", self.b)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.a(x).relu())


@idiom(dense={"b": PAST})
class Closure(Two):
    def __init__(self) -> None:
        super().__init__()
        layer = self.b
        self.last = lambda x: layer(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.a(x).relu())


@idiom(dense={"b": "read outside"})
class BoundMethod(Two):
    def __init__(self) -> None:
        super().__init__()
        self.last = self.b.__call__

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.a(x).relu())


@idiom(dense={"b": PAST})
class Partial(Two):
    def __init__(self) -> None:
        super().__init__()
        self.last = functools.partial(self.b)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.a(x).relu())


class Holder:
    """No module."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer


@idiom(dense={"b": PAST})
class OtherObject(Two):
    def __init__(self) -> None:
        super().__init__()
        self.holder = Holder(self.b)

    def forward(self, x: Tensor) -> Tensor:
        return self.holder.layer(self.a(x).relu())


@idiom(dense={"b": PAST})
class SometimesPast(Two):
    """Called twice, once past the module tree."""

    def __init__(self) -> None:
        super().__init__()
        self.holder = Holder(self.b)

    def forward(self, x: Tensor) -> Tensor:
        return self.holder.layer(self.b(self.a(x).relu()).relu())
