# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The shape of a config, and its validation with messages that name the key."""

from __future__ import annotations

from collections.abc import Mapping

from lowrank_nncf.errors import ConfigurationError, as_nncf_errors
from lowrank_nncf.nncf3.sections import Section
from lowrank_plugin.host import Json, suggestion, validate

SCOPES: Json = {
    "description": "a scope or a list of scopes: module names, NNCF operation names or '{re}' and a pattern",
    "type": ["string", "array"],
    "items": {"type": "string"},
}

SCOPING: Json = {
    "ignored_scopes": SCOPES,
    "target_scopes": SCOPES,
    "validate_scopes": {"description": "true or false", "type": "boolean"},
}
"""The keys with which a section that puts hooks into a model says where."""

INPUT: Json = {
    "type": "object",
    "properties": {
        "sample_size": {
            "description": "a list of positive integers, the batch size first",
            "type": "array",
            "items": {"type": "integer", "minimum": 1},
        },
        "type": {"description": "'float' or 'long'", "enum": ["float", "long"]},
        "filler": {"description": "'ones', 'zeros' or 'random'", "enum": ["ones", "zeros", "random"]},
        "keyword": {"description": "the name of an argument of forward", "type": "string", "minLength": 1},
    },
    "additionalProperties": False,
}

CONFIG: Json = {
    "type": "object",
    "properties": {
        "input_info": {
            "description": "a dictionary with 'sample_size', or a list of them for several inputs",
            "type": ["object", "array"],
        },
        "compression": {
            "description": "a section with the key 'algorithm', or a list of sections",
            "type": ["object", "array"],
        },
        "target_device": {
            "description": "'ANY', 'CPU', 'GPU' or 'NPU'",
            "enum": ["ANY", "CPU", "GPU", "NPU"],
        },
        "ignored_scopes": SCOPES,
        "target_scopes": SCOPES,
        "bake_pruning": {"description": "true or false", "type": "boolean"},
    },
    "additionalProperties": False,
}

_REMOVED = "NNCF 3 no longer has it. "
ELSEWHERE = {
    "filter_pruning": _REMOVED + "Use 'lowrank', which also makes layers really smaller.",
    "knowledge_distillation": _REMOVED + "Add the distance to the original model's outputs to the training loss.",
    "const_sparsity": _REMOVED + "Use 'magnitude_sparsity', or add \"bake_pruning\": true for a model already pruned.",
    "movement_sparsity": _REMOVED + "Use 'rb_sparsity', which learns its masks as well.",
    "progressive_shrinking": _REMOVED + "Use 'lowrank' with a budget: it chooses the sizes of the layers.",
    "binarization": _REMOVED + "Use 'quantization'.",
    "experimental_quantization": _REMOVED + "Use 'quantization'.",
}
"""Algorithms of NNCF 2.x that a config for NNCF 3.x cannot name, and what to use instead."""


def validated(config: object, schemas: Mapping[str, Section]) -> list[Json]:
    """Check a config and return its compression sections as a list.

    >>> nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    >>> validated({"compression": {"algorithm": "lowrnk"}}, {"lowrank": nothing})
    Traceback (most recent call last):
        ...
    lowrank_nncf.errors.ConfigurationError: Unknown algorithm 'lowrnk' in config['compression'].
    Did you mean 'lowrank'? Algorithms: lowrank.

    :param config: the config as users write it.
    :param schemas: {algorithm: the schema of its section without the key 'algorithm'}; a schema may hold
        ``"removed"``, {key that NNCF 2 knew: what to do instead}.
    :return: the sections in the order of the config.
    :raises ConfigurationError: where the config does not fit.
    """
    if not isinstance(config, Mapping):
        msg = f"Expected the config to be a dictionary, got {type(config).__name__}."
        raise ConfigurationError(msg)
    with as_nncf_errors():
        validate(dict(config), CONFIG, "config")
        _validate_inputs(config.get("input_info", []))
    compression = config.get("compression")
    if not compression:
        msg = 'The config has no compression section. Add "compression": {"algorithm": "lowrank", "budget": ...}.'
        raise ConfigurationError(msg)
    many = not isinstance(compression, Mapping)
    listed = list(compression) if many else [compression]
    for index, section in enumerate(listed):
        _validate_section(section, schemas, f"config['compression'][{index}]" if many else "config['compression']")
    return [dict(section) for section in listed]


def _validate_inputs(input_info: Json | list[Json]) -> None:
    single = isinstance(input_info, Mapping)
    for index, entry in enumerate([input_info] if single else input_info):
        where = "config['input_info']" + ("" if single else f"[{index}]")
        validate(entry, INPUT, where)
        if "sample_size" not in entry:
            msg = f"Missing key 'sample_size' in {where}: expected {INPUT['properties']['sample_size']['description']}."
            raise ConfigurationError(msg)


def _validate_section(section: object, schemas: Mapping[str, Section], where: str) -> None:
    if not isinstance(section, Mapping):
        msg = f"Invalid value {section!r} for {where}: expected a dictionary with the key 'algorithm'."
        raise ConfigurationError(msg)
    choices = f"Algorithms: {', '.join(schemas)}."
    name = section.get("algorithm")
    if name is None:
        msg = f"Missing key 'algorithm' in {where}. {choices}"
        raise ConfigurationError(msg)
    if name in ELSEWHERE:
        msg = f"Algorithm {name!r} in {where} cannot be used: {ELSEWHERE[name]} {choices}"
        raise ConfigurationError(msg)
    if name not in schemas:
        msg = f"Unknown algorithm {name!r} in {where}. {suggestion(name, schemas)}{choices}"
        raise ConfigurationError(msg)
    for key in section:
        if key in schemas[name].get("removed", {}):
            msg = f"Key {key!r} in {where} cannot be used: {schemas[name]['removed'][key]}"
            raise ConfigurationError(msg)
    with as_nncf_errors():
        validate({key: value for key, value in section.items() if key != "algorithm"}, schemas[name], where)
