# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What networks do while they run: with what they get, keep, change and put out."""

from __future__ import annotations

from typing import Any

import torch
from plugin.idioms.base import (
    IDIOMS,
    WIDTH,
    Idiom,
    Two,
    after_a_run,
    idiom,
    vectors,
)
from torch import Tensor, nn


class KeepsFeatures(Two):
    def forward(self, x: Tensor) -> Tensor:
        self.features = self.a(x).relu()
        return self.b(self.features)


class CollectsFeatures(Two):
    def __init__(self) -> None:
        super().__init__()
        self.collected: list[Tensor] = []
        self.by_name: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.collected.append(self.a(x).relu())
        self.by_name["last"] = {"inner": (self.collected[-1], x)}
        return self.b(self.collected[-1])


IDIOMS["keeps_features"] = Idiom(KeepsFeatures, vectors)
IDIOMS["kept_features"] = Idiom(lambda: after_a_run(KeepsFeatures()), vectors)
IDIOMS["collects_features"] = Idiom(CollectsFeatures, vectors)
IDIOMS["collected_features"] = Idiom(lambda: after_a_run(CollectsFeatures()), vectors)


@idiom()
class ChangesItsInput(Two):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).div_(0.25))


@idiom()
class ChangesActivations(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x *= 2
        x = x.relu_()
        return self.b(x).add_(1)


@idiom()
def lazy_after_a_run() -> nn.Module:
    return after_a_run(nn.Sequential(nn.LazyLinear(WIDTH), nn.ReLU(), nn.LazyLinear(10)))


@idiom(lambda generator: {"left": vectors(generator), "right": vectors(generator)})
class DictIn(Two):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.b(self.a(left).relu() + self.a(right))


@idiom(lambda generator: (vectors(generator), [vectors(generator), {"more": vectors(generator)}]))
class NestedInputs(Two):
    def forward(self, x: Tensor, rest: list[Any]) -> Tensor:
        return self.b(self.a(x).relu() + self.a(rest[0]) + self.a(rest[1]["more"]))


@idiom()
class DictOut(Two):
    def forward(self, x: Tensor) -> dict[str, Any]:
        inner = self.a(x).relu()
        return {"logits": self.b(inner), "hidden": [inner], "name": "net"}


@idiom()
class SeveralOutputs(Two):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        inner = self.a(x).relu()
        return inner, self.b(inner), None


@idiom()
class ScalarBeside(Two):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = super().forward(x)
        return y, y.square().mean()


@idiom()
class CountsInBuffers(Two):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("last", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        self.last = x
        return super().forward(x)


@idiom()
class CountsInAttributes(Two):
    def __init__(self) -> None:
        super().__init__()
        self.calls, self.history, self.cache = 0, [], {}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.history.append(self.calls)
        self.cache[self.calls] = "seen"
        self.fresh = object()
        return super().forward(x)


@idiom()
class HookedOutput(Two):
    def __init__(self) -> None:
        super().__init__()
        self.a.register_forward_hook(times_four)


@idiom()
class HookedInput(Two):
    def __init__(self) -> None:
        super().__init__()
        self.b.register_forward_pre_hook(halved)


def times_four(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 4


def halved(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0] * 0.5,)


@idiom()
def hooks_of_every_kind() -> nn.Module:
    model = Two()
    model.a.register_forward_hook(lambda module, args, kwargs, output: None, with_kwargs=True, always_call=True)
    model.a.register_full_backward_hook(lambda module, inputs, outputs: None)
    model.b.register_state_dict_post_hook(lambda module, *rest: None)
    model.register_forward_pre_hook(lambda module, args: None)
    return model
