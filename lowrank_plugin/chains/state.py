# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The structure of a compressed model as a JSON value, and a fresh model brought into that structure."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from torch import nn

from lowrank_hooks import Factorization, Stage
from lowrank_plugin.chains.record import RECORD, report
from lowrank_plugin.errors import PlanError, PluginError
from lowrank_plugin.layers.replacement import make_chain, replace
from lowrank_plugin.layers.subclasses import known_base
from lowrank_plugin.plugins import DECOMPOSERS, LAYER_ADAPTERS, OWN_DISTRIBUTION, Kind, manager
from lowrank_plugin.ranks.planning import FORMAT
from lowrank_plugin.ranks.proposals import DENSE
from lowrank_plugin.support.messages import suggestion
from lowrank_plugin.support.validation import validate

_LAYER = {"type": "object", "required": ["decomposer", "kind", "stages", "bias", "parameters"]}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["format", "record"],
    "properties": {
        "format": {
            "const": FORMAT,
            "description": f"{FORMAT}, the format that this version reads; install a newer one",
        },
        "record": {
            "type": "object",
            "required": ["layers"],
            "properties": {"layers": {"type": "object", "additionalProperties": _LAYER}},
        },
    },
}


def get_state(compressed: nn.Module) -> dict[str, Any]:
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
    record = json.loads(json.dumps(report(compressed).to_dict()))
    for entry in record["layers"].values():
        if entry["decomposer"] != DENSE:
            found = manager().registered(DECOMPOSERS).get(entry["decomposer"])
            entry["plugins"] = {
                "decomposer": found.distribution if found else OWN_DISTRIBUTION,
                "layer adapter": manager().registered(LAYER_ADAPTERS)[entry["kind"]].distribution,
            }
    versions = {name: metadata.version(name) for name in (OWN_DISTRIBUTION, "torch")}
    return {"format": FORMAT, "versions": versions, "record": record}


def restore(model: nn.Module, state: Mapping[str, Any], *, inplace: bool = False) -> nn.Module:
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
    restored = model if inplace else copy.deepcopy(model)
    modules = dict(restored.named_modules())
    chains = {}
    for name, entry in state["record"]["layers"].items():
        if entry["decomposer"] == DENSE:
            continue
        _check_plugins(name, entry)
        if name not in modules:
            msg = f"The state compresses {name!r}, but the model has no such layer. {suggestion(name, modules)}".strip()
            raise PlanError(msg)
        chains[name] = _empty_chain(name, modules[name], entry)
    for name, chain in chains.items():
        if modules[name] is restored:
            restored = chain
        replace(restored, modules[name], chain)
    setattr(restored, RECORD, state["record"])
    return restored


def _check_plugins(name: str, entry: Mapping[str, Any]) -> None:
    wanted: list[tuple[Kind[Any], str]] = [(DECOMPOSERS, entry["decomposer"]), (LAYER_ADAPTERS, entry["kind"])]
    for kind, record in wanted:
        if record not in manager().registered(kind):
            where = entry.get("plugins", {}).get(kind.name, "an unknown distribution")
            msg = f"Layer {name!r} was made with the {kind.name} {record!r} of {where}, which is not installed here."
            raise PluginError(msg)


def _empty_chain(name: str, layer: nn.Module, entry: Mapping[str, Any]) -> nn.Module:
    record = manager().find(LAYER_ADAPTERS, entry["kind"])
    if known_base(layer, {record.module_type}) is None:
        msg = f"The state compresses the {entry['kind']} {name!r}, but in this model it is a {type(layer).__name__}."
        raise PlanError(msg)
    kernel = record.adapter.kernel(layer)
    if kernel.numel() != entry["parameters"][0]:
        msg = f"The state compresses {name!r} with {entry['parameters'][0]} weights, but here it has {kernel.numel()}."
        raise PlanError(msg)
    stages = tuple(
        Stage(
            kernel.new_zeros(kernel.shape[0], stage["out"], stage["in"] // stage["groups"], *stage["kernel"]),
            stage["groups"],
        )
        for stage in entry["stages"]
    )
    bias = kernel.new_zeros(kernel.shape[0] * kernel.shape[1]) if entry["bias"] else None
    return make_chain(layer, record.adapter, Factorization(stages), bias)
