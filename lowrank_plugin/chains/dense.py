# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The way back: chains to single layers."""

from __future__ import annotations

from dataclasses import replace as with_fields

from torch import nn

from lowrank_plugin.chains.record import RECORD, attach, record_of
from lowrank_plugin.errors import LowRankError
from lowrank_plugin.layers.replacement import hand_over, replace
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
from lowrank_plugin.support.copying import copied
from lowrank_plugin.support.messages import suggestion


def to_dense(compressed: nn.Module, *names: str) -> nn.Module:
    """Multiply chains out again, each into one layer of its original class.

    >>> import torch, lowrank_plugin
    >>> model = nn.Sequential(nn.Linear(8, 8))
    >>> small = lowrank_plugin.decompose(model, None, ranks={"0": 8}, example_input=torch.ones(1, 8))
    >>> to_dense(small)[0]
    Linear(in_features=8, out_features=8, bias=True)

    :param compressed: a model that came out of :func:`lowrank_plugin.decompose`; it is not changed.
    :param names: the layers to restore; all where none are given.
    :return: a copy that computes the same, up to rounding.
    :raises LowRankError: where the model carries no record or a name is not one of its chains.
    """
    record, registry = record_of(compressed), manager()
    chains = record.chains
    for name in names:
        if name not in chains:
            msg = f"{name!r} is not a chain of this model. {suggestion(name, chains)}Chains: {', '.join(chains)}."
            raise LowRankError(msg)
    model = copied(compressed)
    for name in names or chains:
        chain = model.get_submodule(name)
        if not isinstance(chain, nn.Sequential):
            msg = f"{name!r} is a {type(chain).__name__} here, not the chain that the record tells of."
            raise LowRankError(msg)
        adapter = registry.find(LAYER_ADAPTERS, chains[name].kind).adapter
        layer = hand_over(chain, adapter.to_dense(chain))
        if chain is model:
            model = layer
        replace(model, chain, layer)
    left = {name: layer for name, layer in record.layers.items() if names and name not in names}
    if left:
        attach(model, with_fields(record, layers=left))
    elif hasattr(model, RECORD):
        delattr(model, RECORD)
    return model
