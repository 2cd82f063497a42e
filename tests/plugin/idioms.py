# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Ways in which people write networks, each as small as it can be: what holds for one should hold for all."""

from __future__ import annotations

import functools
import random
import threading
from collections import deque, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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


def after_a_run(model: nn.Module, batch: Callable[[torch.Generator], Any] = vectors) -> nn.Module:
    """As it is once somebody has run it."""
    model(batch(torch.Generator().manual_seed(2)))
    return model


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
