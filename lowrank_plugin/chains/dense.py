# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The way back: chains to single layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as with_fields

from torch import nn

from lowrank_plugin.chains.record import RECORD, Record, RecordedLayer, attach, record_of
from lowrank_plugin.errors import LowRankError
from lowrank_plugin.layers.replacement import hand_over, replace
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
from lowrank_plugin.support.copying import copied
from lowrank_plugin.support.keeping import undisturbed
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
    rounds = record_of(compressed).rounds
    known = {name for each in rounds for name in each.chains}
    for name in names:
        if name not in known:
            listed = ", ".join(sorted(known))
            msg = f"{name!r} is not a chain of this model. {suggestion(name, known)}Chains: {listed}."
            raise LowRankError(msg)
    with undisturbed():
        model, left = copied(compressed), list[Record]()
        for each in reversed(rounds):
            undone = [name for name in each.chains if not names or _is_in(name, names)]
            for name in undone:
                model = _undone(model, name, each.chains[name])
            layers = {name: layer for name, layer in each.layers.items() if names and not _is_in(name, names)}
            kept = with_fields(each, layers=layers)
            if kept.chains or (layers and each == rounds[0]):
                left.insert(0, kept)
    if left:
        attach(model, Record.of_rounds(left))
    elif hasattr(model, RECORD):
        delattr(model, RECORD)
    return model


def _is_in(name: str, chains: Sequence[str]) -> bool:
    """Whether a chain is one of some, or took the place of a stage of one."""
    return any(name == chain or not chain or name.startswith(f"{chain}.") for chain in chains)


def _undone(model: nn.Module, name: str, recorded: RecordedLayer) -> nn.Module:
    """A model with one chain multiplied out; changed in place unless it is itself the chain."""
    chain = model.get_submodule(name)
    if not isinstance(chain, nn.Sequential):
        msg = f"{name!r} is a {type(chain).__name__} here, not the chain that the record tells of."
        raise LowRankError(msg)
    adapter = manager().find(LAYER_ADAPTERS, recorded.kind).adapter
    layer = hand_over(chain, adapter.to_dense(chain))
    replace(model, chain, layer)
    return layer if chain is model else model
