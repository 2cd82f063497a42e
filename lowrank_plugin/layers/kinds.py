# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Which adapter is for a module, and whether the module can be written to through it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import nn

from lowrank_hooks import LayerAdapter, LayerAdapterRecord, WeightLayout
from lowrank_plugin.layers.subclasses import known_base
from lowrank_plugin.plugins import Registered

Adapters = Mapping[str, Registered[LayerAdapterRecord]]
"""Layer adapters by the name of their layers' kind."""


@runtime_checkable
class Writable(LayerAdapter, WeightLayout, Protocol):
    """An adapter that also tells where the entries of a kernel are in the weight."""


def by_type(adapters: Adapters) -> dict[type, tuple[str, LayerAdapter]]:
    """The name of its layers' kind and the adapter, by the class of module that it is made for.

    :param adapters: the layer adapters by name.
    """
    return {entry.record.module_type: (name, entry.record.adapter) for name, entry in adapters.items()}


def writable(module: nn.Module, adapters: Adapters) -> Writable | None:
    """The adapter by which a layer, or a stage of a chain, can be written to; None where there is none.

    >>> from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
    >>> adapters = manager().registered(LAYER_ADAPTERS)
    >>> writable(nn.Linear(2, 3), adapters).kernel(nn.Linear(2, 3)).shape, writable(nn.ReLU(), adapters)
    (torch.Size([1, 3, 2]), None)

    :param module: any module; of subclasses those that compute what their base computes.
    :param adapters: the layer adapters by name.
    """
    types = by_type(adapters)
    base = known_base(module, types)
    adapter = None if base is None else types[base][1]
    return adapter if isinstance(adapter, Writable) else None
