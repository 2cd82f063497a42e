# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What a model does with its layers, seen while it runs: when it calls them, and which of their attributes it reads.

Not thread-safe: classes are swapped meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_plugin.layers.subclasses import own_attributes

LAYER_ATTRIBUTES = frozenset(
    {"weight", "bias", "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"}
    | {"padding_mode", "in_features", "out_features"}
)
"""Attributes that a chain does not have; a model that reads them on a layer needs the layer as it is."""


Calls = dict[str, list[tuple[torch.Size, torch.Size]]]
"""Shapes of input and output at every call of a layer, by its name, in the order of the first calls."""


@dataclass(frozen=True)
class Seen:
    """What was seen of some layers.

    :param calls: of those that were called with a tensor and returned one.
    :param readers: an attribute of each that was read while none of its own methods was running.
    """

    calls: Calls = field(default_factory=dict)
    readers: dict[str, str] = field(default_factory=dict)


@contextmanager
def watching(
    candidates: Mapping[str, tuple[nn.Module, type]], around: Mapping[str, Callable[..., Any]] = MappingProxyType({})
) -> Iterator[Seen]:
    """See what happens to some layers.

    Each is given, for the length of the run, a subclass of its class: attribute reads by other code pass through no
    hook, and torch takes other ways through some modules while their parts have hooks.

    >>> layer = nn.Linear(2, 3)
    >>> with watching({"fc": (layer, nn.Linear)}) as seen:
    ...     _ = layer(torch.ones(4, 2)).to(layer.weight.device)
    >>> seen.calls, seen.readers
    ({'fc': [(torch.Size([4, 2]), torch.Size([4, 3]))]}, {'fc': 'weight'})

    :param candidates: the layers by name, each with the class that its adapter is for.
    :param around: for some of them what is called in the place of their forward, with the forward and its arguments.
    """
    seen = Seen()
    wanted = {
        id(module): (name, LAYER_ATTRIBUTES | own_attributes(module, base))
        for name, (module, base) in candidates.items()
    }
    running: list[int] = []
    original = {id(module): (module, type(module)) for module, _ in candidates.values()}

    def watched(kind: type) -> type:
        class Watched(kind):
            def __getattribute__(self, attribute: str) -> Any:
                name, attributes = wanted[id(self)]
                if attribute in attributes and id(self) not in running:
                    seen.readers.setdefault(name, attribute)
                return super().__getattribute__(attribute)

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                running.append(id(self))
                try:
                    return super().__call__(*args, **kwargs)
                finally:
                    running.remove(id(self))

            def forward(self, *args: Any, **kwargs: Any) -> Any:
                (name, _), forward = wanted[id(self)], super().forward
                output = around[name](forward, *args, **kwargs) if name in around else forward(*args, **kwargs)
                inputs = layer_input(args, kwargs)
                if isinstance(inputs, Tensor) and isinstance(output, Tensor) and id(self) in running:
                    seen.calls.setdefault(name, []).append((inputs.shape, output.shape))
                return output

        Watched.__name__, Watched.__qualname__ = kind.__name__, kind.__qualname__
        return Watched

    subclasses = {kind: watched(kind) for _, kind in original.values()}
    try:
        for module, kind in original.values():
            module.__class__ = subclasses[kind]
        yield seen
    finally:
        for module, kind in original.values():
            module.__class__ = kind


def layer_input(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Any:
    """The input tensor of a layer from the arguments of its forward.

    >>> layer_input((), {"input": "x"})
    'x'

    :param args: the positional ones.
    :param kwargs: those by name.
    """
    return args[0] if args else kwargs.get("input")
