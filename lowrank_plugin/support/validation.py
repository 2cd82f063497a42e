# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""JSON-schema validation with messages that name the key, what was expected and the nearest valid key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import jsonschema

from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.support.messages import suggestion

Json: TypeAlias = dict[str, Any]
"""A JSON object that is written."""

JsonObject: TypeAlias = Mapping[str, Any]
"""A JSON object that is read; nothing about it is known before it was validated."""


def validate(value: Any, schema: JsonObject, where: str) -> None:
    """Check a JSON value against a schema.

    >>> schema = {"type": "object", "properties": {"seed": {"type": "integer"}}, "additionalProperties": False}
    >>> validate({"seed": 1}, schema, "section")
    >>> validate({"sed": 1}, schema, "section")
    Traceback (most recent call last):
        ...
    lowrank_plugin.errors.ConfigurationError: Unknown key 'sed' in section. Did you mean 'seed'? Valid keys: seed.

    :param value: the value to check.
    :param schema: a JSON schema, draft 2020-12; a schema's ``description`` is quoted as what was expected.
    :param where: what the value is, for the message.
    :raises ConfigurationError: where it does not fit; the first and most specific fault is named.
    """
    validator = jsonschema.Draft202012Validator(schema)
    error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    if error is None:
        return
    place = where + "".join(f"[{key!r}]" for key in error.absolute_path)
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        valid = list(error.schema.get("properties", {}))
        unknown = next(key for key in error.instance if key not in valid)
        msg = f"Unknown key {unknown!r} in {place}. {suggestion(unknown, valid)}Valid keys: {', '.join(valid)}."
        raise ConfigurationError(msg)
    expected = error.schema.get("description") if isinstance(error.schema, Mapping) else None
    msg = f"Invalid value {error.instance!r} for {place}: " + (
        f"expected {expected}." if expected else error.message + "."
    )
    raise ConfigurationError(msg)
