# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The structure of a compressed model as a JSON value, and a fresh model brought into that structure."""

from __future__ import annotations

import json
from dataclasses import replace as with_fields
from importlib import metadata
from typing import Any

from torch import nn

from lowrank_hooks import Factorization, Stage
from lowrank_plugin.chains.record import Record, RecordedLayer, attach, record_of
from lowrank_plugin.errors import PlanError, PluginError
from lowrank_plugin.layers.replacement import make_chain, replace
from lowrank_plugin.layers.subclasses import known_base
from lowrank_plugin.plugins import DECOMPOSERS, LAYER_ADAPTERS, OWN_DISTRIBUTION, Kind, Manager, manager
from lowrank_plugin.support.copying import copied
from lowrank_plugin.support.messages import suggestion
from lowrank_plugin.support.validation import Json, JsonObject, validate

FORMAT = 1
"""Of states; plans have their own."""

_SCHEMA: Json = {
    "type": "object",
    "required": ["format", "record"],
    "properties": {
        "format": {
            "const": FORMAT,
            "description": f"{FORMAT}, the format that this version reads; install a newer one",
        },
        "record": {"type": "object"},
    },
}


def get_state(compressed: nn.Module) -> Json:
    """Everything but the weights that is needed to build the compressed model again.

    >>> import torch, lowrank_plugin
    >>> model = nn.Sequential(nn.Linear(8, 8))
    >>> small = lowrank_plugin.decompose(model, None, ranks={"0": 2}, example_input=torch.ones(1, 8))
    >>> restored = restore(nn.Sequential(nn.Linear(8, 8)), get_state(small))
    >>> restored.load_state_dict(small.state_dict())
    <All keys matched successfully>

    :param compressed: a model that came out of :func:`lowrank_plugin.decompose` or :func:`lowrank_plugin.apply`.
    :return: a JSON value; keep it beside the ``state_dict``.
    :raises LowRankError: where the model carries no record.
    """
    record, registry = record_of(compressed), manager()
    layers = {
        name: _with_plugins(layer, registry) if layer.is_chain else layer for name, layer in record.layers.items()
    }
    versions = {name: metadata.version(name) for name in (OWN_DISTRIBUTION, "torch")}
    written = with_fields(record, layers=layers).to_json()
    return json.loads(json.dumps({"format": FORMAT, "versions": versions, "record": written}))


def _with_plugins(layer: RecordedLayer, registry: Manager) -> RecordedLayer:
    """A layer with the names of the distributions that its decomposer and its adapter are of."""
    made, adapted = (
        registry.registered(DECOMPOSERS).get(layer.decomposer),
        registry.registered(LAYER_ADAPTERS)[layer.kind],
    )
    plugins = {
        DECOMPOSERS.name: made.distribution if made else OWN_DISTRIBUTION,
        LAYER_ADAPTERS.name: adapted.distribution,
    }
    return with_fields(layer, plugins=plugins)


def restore(model: nn.Module, state: JsonObject, *, inplace: bool = False) -> nn.Module:
    """Bring a fresh, uncompressed model into the structure of a compressed one. Nothing is solved, no data needed.

    :param model: the network as its constructor makes it; it is not changed unless ``inplace``.
    :param state: what :func:`get_state` returned.
    :param inplace: change the model itself.
    :return: the network with chains whose weights are zero until its ``load_state_dict`` is called.
    :raises PlanError: where the state is malformed, of a newer format, or of another network.
    :raises PluginError: where a plugin that made a layer is not installed; names its distribution.
    """
    try:
        validate(dict(state), _SCHEMA, "the state")
    except ValueError as error:
        raise PlanError(str(error)) from error
    record, registry = Record.from_json(state["record"]), manager()
    restored = model if inplace else copied(model)
    modules = dict(restored.named_modules())
    chains = {}
    for name, layer in record.chains.items():
        _check_plugins(name, layer, registry)
        if name not in modules:
            msg = f"The state compresses {name!r}, but the model has no such layer. {suggestion(name, modules)}".strip()
            raise PlanError(msg)
        chains[name] = _empty_chain(name, modules[name], layer, registry)
    for name, chain in chains.items():
        if modules[name] is restored:
            restored = chain
        replace(restored, modules[name], chain)
    attach(restored, record)
    return restored


def _check_plugins(name: str, layer: RecordedLayer, registry: Manager) -> None:
    wanted: list[tuple[Kind[Any], str]] = [(DECOMPOSERS, layer.decomposer), (LAYER_ADAPTERS, layer.kind)]
    for kind, needed in wanted:
        if needed not in registry.registered(kind):
            where = (layer.plugins or {}).get(kind.name, "an unknown distribution")
            msg = f"Layer {name!r} was made with the {kind.name} {needed!r} of {where}, which is not installed here."
            raise PluginError(msg)


def _empty_chain(name: str, module: nn.Module, layer: RecordedLayer, registry: Manager) -> nn.Module:
    """A chain with weights of zero in a module's place."""
    found = registry.find(LAYER_ADAPTERS, layer.kind)
    if known_base(module, {found.module_type}) is None:
        msg = f"The state compresses the {layer.kind} {name!r}, but in this model it is a {type(module).__name__}."
        raise PlanError(msg)
    kernel, weights = found.adapter.kernel(module), layer.costs["parameters"].before
    if kernel.numel() != weights:
        msg = f"The state compresses {name!r} with {weights} weights, but here it has {kernel.numel()}."
        raise PlanError(msg)
    stages = tuple(
        Stage(
            kernel.new_zeros(
                kernel.shape[0], stage.out_channels, stage.in_channels // stage.groups, *stage.kernel_size
            ),
            stage.groups,
        )
        for stage in layer.stages
    )
    bias = kernel.new_zeros(kernel.shape[0] * kernel.shape[1]) if layer.bias else None
    return make_chain(module, found.adapter, Factorization(stages), bias)
