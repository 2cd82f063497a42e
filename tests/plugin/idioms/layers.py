# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Layers that are prepared, shared with other code, or of classes of their own, and how they are called."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy
import torch
from plugin.idioms.base import (
    IDIOMS,
    WIDTH,
    Idiom,
    Two,
    conv,
    idiom,
    images,
    linear,
    sequences,
    vectors,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@idiom(dense={"a": ""})
def weight_norm_by_hooks() -> nn.Module:
    model = Two()
    weight = model.a._parameters.pop("weight")
    model.a.weight_g = nn.Parameter(weight.detach().norm(dim=1, keepdim=True))
    model.a.weight_v = nn.Parameter(weight.detach())

    def compute(module: nn.Module, args: Any) -> None:
        module.weight = module.weight_g * nn.functional.normalize(module.weight_v, dim=1)

    model.a.register_forward_pre_hook(compute)
    compute(model.a, ())
    return model


@idiom(dense={"a": "parametrised"})
def weight_norm_by_parametrization() -> nn.Module:
    model = Two()
    nn.utils.parametrizations.weight_norm(model.a)
    return model


@idiom(sequences)
class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.memory, self.b = linear(), nn.LSTM(WIDTH, 4, batch_first=True), nn.Linear(4, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.memory(self.a(self.a(x)))[0])


@idiom(sequences, dense={"mix": "", "mix.out_proj": ""})
class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.mix, self.b = linear(), nn.MultiheadAttention(WIDTH, 4, batch_first=True), linear(64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x + self.mix(x, x, x, need_weights=False)[0])


@idiom(sequences, dense={"1.linear1": "", "1.linear2": "", "1.self_attn": "", "1.self_attn.out_proj": ""})
def transformer_layer() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, 256), nn.TransformerEncoderLayer(256, 4, 32, batch_first=True), nn.Linear(256, 256)
    )


@idiom()
class CalledRepeatedly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Two(), linear(10)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + 0.1 * self.block(x)
        return self.head(x)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.block, self.head, self.reentrant = linear(), Two(), linear(10), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, self.stem(x), use_reentrant=self.reentrant))


IDIOMS["checkpoint"] = Idiom(lambda: Checkpointed(reentrant=False), vectors)
IDIOMS["checkpoint_reentrant"] = Idiom(lambda: Checkpointed(reentrant=True), vectors)


@idiom()
class FlowOfData(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        while float(x.norm()) > 100:
            x = x / 2
        return self.b(x) if float(x.mean()) < 1e6 else x


@idiom()
class DetachedBranch(Two):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = self.a(x).relu()
        return self.b(inner), inner.detach()


@idiom()
class WithoutGradients(Two):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@idiom()
def partly_frozen() -> nn.Module:
    model = Two()
    model.a.requires_grad_(False)
    model.b.eval()
    return model


@idiom()
def trained_a_step() -> nn.Module:
    model = Two()
    model(vectors(torch.Generator().manual_seed(2))).square().mean().backward()
    return model


@idiom()
class CustomAttributes(Two):
    def __init__(self) -> None:
        super().__init__()
        self.config = {"width": WIDTH, "names": ["a", "b"]}
        self.table, self.note, self.kind = numpy.eye(3), "a note", Two
        self.b.owner = "me"

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@idiom()
class LeafTensors(Two):
    """Tensors with gradients that are no Parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(WIDTH, requires_grad=True)
        self.scales = [torch.ones(WIDTH, requires_grad=True)]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scale) * self.scales[0]


@idiom()
class DrawsInForward(Two):
    """Noise even in eval mode, of three generators."""

    def forward(self, x: Tensor) -> Tensor:
        noise = float(numpy.random.rand()) + random.random()
        return super().forward(x + 1e-3 * noise * torch.rand_like(x))


class Wide(nn.Linear):
    """A subclass that changes nothing but its construction."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)


@idiom()
def harmless_subclass() -> nn.Module:
    return nn.Sequential(Wide(), nn.GELU(), Wide())


@idiom(dense={"b": "read outside"})
class ReadsItsLayers(Two):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.b.weight.mean()


@idiom(images)
def convolutions_of_all_kinds() -> nn.Module:
    return nn.Sequential(
        conv(3), nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2), nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2, padding_mode="reflect", bias=False), nn.Flatten(),
    )  # fmt: skip


@idiom(copied=False)
class HoldsLock(Two):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return super().forward(x)


@idiom(copied=False)
class HoldsGenerator(Two):
    def __init__(self) -> None:
        super().__init__()
        self.b.numbers = (each for each in range(3))
