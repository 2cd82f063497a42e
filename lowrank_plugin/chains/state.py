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
from lowrank_plugin.layers.prepared import PlainAdapter, plain_from_json
from lowrank_plugin.layers.replacement import exchange, make_chain
from lowrank_plugin.layers.subclasses import known_base
from lowrank_plugin.plugins import DECOMPOSERS, LAYER_ADAPTERS, OWN_DISTRIBUTION, Kind, Manager, manager
from lowrank_plugin.support.copying import copied
from lowrank_plugin.support.keeping import undisturbed
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
    record = Record.of_rounds([_with_plugins(each, registry) for each in record.rounds])
    versions = {name: metadata.version(name) for name in (OWN_DISTRIBUTION, "torch")}
    return json.loads(json.dumps({"format": FORMAT, "versions": versions, "record": record.to_json()}))


def _with_plugins(record: Record, registry: Manager) -> Record:
    """A record with the names of the distributions that decomposers and adapters are of."""
    chains = {name: _with_distributions(layer, registry) for name, layer in record.chains.items()}
    return with_fields(record, layers={**record.layers, **chains})


def _with_distributions(layer: RecordedLayer, registry: Manager) -> RecordedLayer:
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

    >>> import torch, lowrank_plugin
    >>> small = lowrank_plugin.decompose(nn.Linear(8, 8), None, ranks={"": 2}, example_input=torch.ones(1, 8))
    >>> restore(nn.Linear(8, 8), get_state(small))
    Sequential(
      (0): Linear(in_features=8, out_features=2, bias=False)
      (1): Linear(in_features=2, out_features=8, bias=True)
    )

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
    with undisturbed():
        restored = model if inplace else copied(model)
        for each in record.rounds:
            restored = _with_chains(restored, each, registry)
    attach(restored, record)
    return restored


def _with_chains(model: nn.Module, record: Record, registry: Manager) -> nn.Module:
    """A model with empty chains in the places that one round put them; changed in place unless it is itself a layer."""
    modules = dict(model.named_modules())
    chains = {}
    for name, layer in record.chains.items():
        _check_plugins(name, layer, registry)
        if name not in modules:
            msg = f"The state compresses {name!r}, but the model has no such layer. {suggestion(name, modules)}".strip()
            raise PlanError(msg)
        chains[name] = _empty_chain(name, modules[name], layer, registry)
    exchange(model, {modules[name]: chain for name, chain in chains.items()})
    return chains.get("", model)


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
    adapter = found.adapter
    if layer.plain is not None and isinstance(module, found.module_type):
        adapter = PlainAdapter(adapter, plain_from_json(module, found.module_type, layer.plain))
    elif known_base(module, {found.module_type}) is None:
        msg = f"The state compresses the {layer.kind} {name!r}, but in this model it is a {type(module).__name__}."
        raise PlanError(msg)
    kernel, weights = adapter.kernel(module), layer.costs["parameters"].before
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
    return make_chain(module, adapter, Factorization(stages), bias)
