# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The ``"lowrank"`` section in NNCF's config: its schema, and messages that name the key."""

from __future__ import annotations

from collections.abc import Mapping

from nncf import NNCFConfig
from nncf.config.schema import NNCF_CONFIG_SCHEMA, REF_VS_ALGO_SCHEMA

from lowrank_nncf.defaults import with_defaults
from lowrank_nncf.errors import ConfigurationError, as_nncf_errors
from lowrank_plugin.host import SCHEMA, Json, JsonObject, Settings, suggestion

NAME = "lowrank"


def section_of(config: JsonObject) -> Json:
    """Return the checked ``"lowrank"`` section of a config, without the key ``"algorithm"``.

    >>> config = {"compression": [{"algorithm": "lowrank", "ranks": {"conv": 8}}, {"algorithm": "quantization"}]}
    >>> section_of(config)
    {'ranks': {'conv': 8}, 'decomposers': 'int8'}

    :param config: a config that has such a section; where it also quantizes, that is told in ``"decomposers"``.
    :raises ConfigurationError: where the section does not fit, is not the first or not the only one.
    """
    sections = _sections(config)
    names = [section.get("algorithm") for section in sections]
    if names.count(NAME) > 1:
        msg = f"Algorithm {NAME!r} appears {names.count(NAME)} times in config['compression']; give it once."
        raise ConfigurationError(msg)
    if names[0] != NAME:
        right = ", ".join([NAME, *(str(name) for name in names if name != NAME)])
        msg = (
            f"The sections of config['compression'] come in the order {', '.join(map(str, names))}. The order must be "
            f"{right}, because every other algorithm must see the layers that {NAME!r} leaves."
        )
        raise ConfigurationError(msg)
    section = {key: value for key, value in sections[0].items() if key != "algorithm"}
    with as_nncf_errors():
        Settings.from_mapping(section)
    return with_defaults(section, names)


def check(config: JsonObject) -> None:
    """Refuse a bad ``"lowrank"`` section and unknown algorithms.

    >>> check({"compression": {"algorithm": "lowrnk"}})
    Traceback (most recent call last):
        ...
    lowrank_nncf.errors.ConfigurationError: Unknown algorithm 'lowrnk' in config['compression'].
    Did you mean 'lowrank'? ...

    :param config: a config as users write it; what NNCF checks by itself is left to it.
    :raises ConfigurationError: naming the key or the algorithm, and the nearest one.
    """
    names = [section.get("algorithm") for section in _sections(config)]
    for name in names:
        if isinstance(name, str) and name not in REF_VS_ALGO_SCHEMA:
            msg = (
                f"Unknown algorithm {name!r} in config['compression']. {suggestion(name, REF_VS_ALGO_SCHEMA)}"
                f"Algorithms: {', '.join(REF_VS_ALGO_SCHEMA)}."
            )
            raise ConfigurationError(msg)
    if NAME in names:
        section_of(config)


def register_section() -> None:
    """Enter the section into NNCF's schema, and have a config with a mistake in it refused in plain words."""
    REF_VS_ALGO_SCHEMA[NAME] = {
        **SCHEMA,
        "properties": {"algorithm": {"const": NAME}, **SCHEMA["properties"]},
        "required": ["algorithm"],
    }
    # a single section and the items of a list refer to one list of alternatives
    single, _ = NNCF_CONFIG_SCHEMA["properties"]["compression"]["oneOf"]
    single["oneOf"].append({"$ref": f"#/$defs/{NAME}"})
    validate = NNCFConfig.validate

    def validate_in_plain_words(loaded_json: Json) -> None:
        check(loaded_json)
        validate(loaded_json)

    # NNCF's own schema can only say that a section fits none of its alternatives
    NNCFConfig.validate = staticmethod(validate_in_plain_words)


def _sections(config: JsonObject) -> list[JsonObject]:
    compression = config.get("compression", []) if isinstance(config, Mapping) else []
    listed = compression if isinstance(compression, list) else [compression]
    return [section for section in listed if isinstance(section, Mapping)]
