# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Which attributes of its layers a model reads, seen while it runs. Not thread-safe: classes are swapped meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from lowrank_plugin.layers.subclasses import own_attributes

LAYER_ATTRIBUTES = frozenset(
    {"weight", "bias", "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"}
    | {"padding_mode", "in_features", "out_features"}
)
"""Attributes that a chain does not have; a model that reads them on a layer needs the layer as it is."""


@contextmanager
def watching(candidates: Mapping[str, tuple[nn.Module, type]]) -> Iterator[dict[str, str]]:
    """Collect which layers have an attribute read while none of their own methods is running.

    A read is seen by giving each module, for the length of the run, a subclass of its class: attribute reads by other
    code pass through no hook.
    """
    readers: dict[str, str] = {}
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
                    readers.setdefault(name, attribute)
                return super().__getattribute__(attribute)

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                running.append(id(self))
                try:
                    return super().__call__(*args, **kwargs)
                finally:
                    running.remove(id(self))

        Watched.__name__, Watched.__qualname__ = kind.__name__, kind.__qualname__
        return Watched

    subclasses = {kind: watched(kind) for _, kind in original.values()}
    try:
        for module, kind in original.values():
            module.__class__ = subclasses[kind]
        yield readers
    finally:
        for module, kind in original.values():
            module.__class__ = kind
