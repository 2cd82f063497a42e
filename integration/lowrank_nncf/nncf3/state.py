# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The structure of a compressed model as one JSON value, and a fresh model brought into that structure."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TypedDict, cast

import nncf
from nncf.torch.function_hook.hook_storage import HookStorage, decode_hook_name
from torch import nn

import lowrank_plugin
from lowrank_hooks import CompressionAlgorithmRecord
from lowrank_nncf.errors import ModelError, PluginError, StateError, as_nncf_errors
from lowrank_nncf.nncf3.algorithms import ALGORITHMS, algorithms
from lowrank_nncf.nncf3.model.wrapping import check_free_of_hooks, hooks
from lowrank_nncf.nncf3.sections import LOWRANK, Section
from lowrank_plugin.host import RECORD, Json, suggestion, validate
from lowrank_plugin.plugins import COMPRESSION_ALGORITHMS, OWN_DISTRIBUTION, manager

FORMAT = 1
APPLIED = "lowrank_nncf_applied"
"""The attribute of a compressed model that holds what was applied to it, in order."""

_SCHEMA: Json = {
    "type": "object",
    "required": ["format", "versions", "config", "algorithms", "lowrank", "nncf", "training"],
    "properties": {
        "format": {"const": FORMAT, "description": f"{FORMAT}, the format this version reads; install a newer one"},
        "versions": {"type": "object"},
        "config": {"type": "object"},
        "algorithms": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "distribution", "statistics"],
                "properties": {"name": {"type": "string"}, "distribution": {"type": "string"}},
            },
        },
        "lowrank": {"type": ["object", "null"]},
        "nncf": {
            "type": ["object", "null"],
            "required": ["compression_state"],
            "properties": {
                "compression_state": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["hook_names_in_model", "module_cls_name", "module_config"],
                        "properties": {
                            # a state may come from anywhere, and NNCF imports the module that it names
                            "module_path": {
                                "pattern": r"^nncf\.",
                                "description": "a module of NNCF itself; others are not imported",
                            },
                            "hook_names_in_model": {"type": "array", "items": {"type": "string"}},
                        },
                    },
                }
            },
        },
        "training": {"type": "object"},
    },
}


class AlgorithmState(TypedDict):
    """One algorithm in a state: its name, where it comes from, and what it returned, as JSON."""

    name: str
    distribution: str
    statistics: object


class State(TypedDict):
    """What :func:`get_state` returns, and :func:`check_state` has looked at."""

    format: int
    versions: dict[str, str]
    config: Json
    algorithms: list[AlgorithmState]
    lowrank: Json | None
    nncf: Json | None
    training: dict[str, int]


@dataclass(frozen=True)
class Applied:
    """One algorithm that was applied to a model.

    :param section: its section of the config.
    :param statistics: what it returned.
    """

    section: Section
    statistics: object


def applied_to(model: nn.Module) -> Sequence[Applied]:
    """What was applied to a model by configs, in order.

    :param model: any model.
    """
    applied: Sequence[Applied] = getattr(model, APPLIED, ())
    return applied


def get_state(model: nn.Module, config: Section, training: Mapping[str, int]) -> State:
    """Everything but the weights that is needed to build a compressed model again.

    :param model: the compressed model.
    :param config: the config it was compressed with.
    :param training: the state of its scheduler.
    :return: a JSON value.
    :raises StateError: where an algorithm of a third party left statistics that are no JSON values.
    """
    applied = applied_to(model)
    has_hooks = next(hooks(model), None) is not None
    return {
        "format": FORMAT,
        "versions": {name: metadata.version(name) for name in (OWN_DISTRIBUTION, "nncf", "torch")},
        "config": _as_json({**config, "compression": [each.section for each in applied]}, "the config"),
        "algorithms": [_as_record(each) for each in applied],
        "lowrank": lowrank_plugin.get_state(model) if hasattr(model, RECORD) else None,
        # through JSON, because NNCF leaves enumerations in it, which torch.load refuses with weights_only
        "nncf": _as_json(nncf.torch.get_config(model), "NNCF's config") if has_hooks else None,
        "training": dict(training),
    }


def load_from_state(model: nn.Module, state: Mapping[str, object]) -> nn.Module:
    """Bring a fresh, uncompressed model into the structure of a compressed one. Nothing is solved, no data needed.

    >>> import io, torch, lowrank_nncf
    >>> section = {"algorithm": "lowrank", "ranks": {"0": 4}, "norm": "frobenius"}
    >>> config = {"input_info": {"sample_size": [1, 8]}, "compression": section}
    >>> controller, compressed = lowrank_nncf.create_compressed_model(nn.Sequential(nn.Linear(8, 8)), config)
    >>> file = io.BytesIO()
    >>> torch.save({"state": controller.get_compression_state(), "weights": compressed.state_dict()}, file)

    Later, and elsewhere:

    >>> saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    >>> restored = load_from_state(nn.Sequential(nn.Linear(8, 8)), saved["state"])
    >>> restored.load_state_dict(saved["weights"])
    <All keys matched successfully>

    :param model: the network as its constructor makes it; it is not changed.
    :param state: what ``controller.get_compression_state()`` returned.
    :return: a copy that has chains, masks and quantizers in their places; ``load_state_dict`` fills them.
    :raises nncf.ValidationError: where the state is damaged, of a newer format, or of another network.
    :raises nncf.UnsupportedModelError: where the model is already compressed.
    :raises nncf.InstallationError: where a plugin that made a part of it is not installed; names its distribution.
    """
    return restored_from(model, check_state(state))


def restored_from(model: nn.Module, state: State) -> nn.Module:
    """As :func:`load_from_state`, for a state that has been checked."""
    check_free_of_hooks(model)
    if hasattr(model, RECORD):
        msg = "The model is already decomposed. Restore into a fresh one, as its constructor makes it."
        raise ModelError(msg)
    records = _installed(state["algorithms"])
    restored = copy.deepcopy(model)
    steps = {each["name"]: each["statistics"] for each in state["algorithms"]}
    # a model may have been decomposed before the config was applied
    for name, statistics in steps.items() if LOWRANK in steps else [(LOWRANK, None), *steps.items()]:
        restore = records[name].restore
        if name == LOWRANK and state["lowrank"] is not None:
            with as_nncf_errors():
                restored = lowrank_plugin.restore(restored, state["lowrank"])
        elif restore is not None:
            restored = restore(restored, statistics)
    if state["nncf"] is not None:
        restored = _with_hooks(restored, state["nncf"], state["versions"].get("nncf", "of an unknown version"))
    sections = state["config"]["compression"]
    found = zip(sections, state["algorithms"], strict=True)
    setattr(restored, APPLIED, [Applied(section, each["statistics"]) for section, each in found])
    return restored


def check_state(state: object) -> State:
    """Refuse what is no state, or one of a newer format.

    :param state: what is to be restored.
    :return: the same, which is a state.
    :raises StateError: naming the first fault.
    """
    try:
        validate(state, _SCHEMA, "the state")
    except ValueError as error:
        raise StateError(str(error)) from error
    checked = cast("State", state)
    names = [each["name"] for each in checked["algorithms"]]
    sections = checked["config"].get("compression", [])
    if [section.get("algorithm") for section in sections] != names:
        msg = f"The state is damaged: its config and its list of algorithms, {', '.join(names)}, differ."
        raise StateError(msg)
    if LOWRANK in names and checked["lowrank"] is None:
        msg = "The state is damaged: 'lowrank' was applied, but the state does not say to which layers."
        raise StateError(msg)
    return checked


def _installed(wanted: Sequence[AlgorithmState]) -> Mapping[str, CompressionAlgorithmRecord]:
    known = algorithms()
    for each in wanted:
        if each["name"] not in known:
            msg = f"The state needs the algorithm {each['name']!r} of {each['distribution']}, which is not installed."
            raise PluginError(msg)
    return known


def _as_record(applied: Applied) -> AlgorithmState:
    name = applied.section["algorithm"]
    with as_nncf_errors():
        others = manager().registered(COMPRESSION_ALGORITHMS)
    statistics = applied.statistics.to_dict() if hasattr(applied.statistics, "to_dict") else applied.statistics
    return {
        "name": name,
        "distribution": OWN_DISTRIBUTION if name in ALGORITHMS or name not in others else others[name].distribution,
        # the report of the decomposition is a part of its own state
        "statistics": None if name == LOWRANK else _as_json(statistics, f"the statistics of {name!r}"),
    }


def _as_json(value: object, what: str) -> Json:
    try:
        plain: Json = json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        msg = f"Cannot save {what}: expected JSON values only ({error})."
        raise StateError(msg) from error
    return plain


def _with_hooks(model: nn.Module, config: Json, written_by: str) -> nn.Module:
    """Put NNCF's hooks into a model, with the mode of the model."""
    modules = dict(model.named_modules())
    for command in config["compression_state"]:
        for hook in command["hook_names_in_model"]:
            _check_place(hook, modules)
    try:
        restored = nncf.torch.load_from_config(model, dict(config))
    except (nncf.InternalError, KeyError, TypeError, ValueError, AttributeError) as error:
        msg = (
            f"NNCF {nncf.__version__} cannot restore the hooks that NNCF {written_by} wrote ({type(error).__name__}: "
            f"{error}). Either the state is damaged, or the version that wrote it has to be installed."
        )
        raise StateError(msg) from error
    for module in restored.modules():
        if isinstance(module, HookStorage):
            module.train(restored.training)
    return restored


def _check_place(hook: str, modules: Mapping[str, nn.Module]) -> None:
    try:
        _, place, _ = decode_hook_name(hook)
    except ValueError as error:
        msg = f"The state is damaged: {hook!r} is no name of a hook of NNCF."
        raise StateError(msg) from error
    # the place is an operation, 'layer/conv/conv2d/0', a parameter, 'layer.conv.weight', or an input
    module = place.rsplit("/", 2)[0].replace("/", ".") if "/" in place else place.rpartition(".")[0]
    if module not in modules:
        msg = (
            f"The state puts a hook on {place!r}, but the model has no module {module!r}. {suggestion(module, modules)}"
            "It is the state of another network."
        )
        raise StateError(msg)
