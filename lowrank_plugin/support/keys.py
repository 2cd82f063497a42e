# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""JSON objects that are described once: a key is a field of a frozen dataclass, its schema the field's metadata.

>>> from dataclasses import dataclass, field
>>> @dataclass(frozen=True)
... class Ramp:
...     widths: tuple[int, ...] = field(metadata=key({"type": "array", "items": {"type": "integer"}}))
...     label: str | None = field(default=None, metadata=key({"type": "string"}, absent=""))
>>> read(Ramp, {"widths": [1, 2]})
Ramp(widths=(1, 2), label=None)
>>> written(Ramp((1, 2)))
{'widths': [1, 2], 'label': ''}
>>> schema_of(Ramp)["required"]
['widths']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from lowrank_plugin.support.validation import Json, JsonObject

T = TypeVar("T")


def _values(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return written(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return list(value) if isinstance(value, tuple) else value


def key(
    schema: JsonObject,
    read: Callable[[Any], Any] = _values,
    absent: Any = None,
    write: Callable[[Any], Any] = _plain,
    later: bool = False,
) -> Json:
    """The metadata of a field that is a key.

    :param schema: JSON schema of the key's value; its ``"description"`` is what messages say was expected.
    :param read: makes the field's value of a valid JSON value; left out, lists become tuples.
    :param absent: the JSON value that a field's None is written as.
    :param write: makes the JSON value of any other.
    :param later: whether earlier versions do not know the key: it is written only where it is not the default, so that
        they read what makes no use of it.
    """
    return {"schema": schema, "read": read, "absent": absent, "write": write, "later": later}


def schema_of(section: type[Any]) -> Json:
    """The JSON schema of an object whose keys are the fields of a dataclass; those without a default are required.

    :param section: the dataclass.
    """
    required = [each.name for each in fields(section) if each.default is each.default_factory is MISSING]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {each.name: each.metadata["schema"] for each in fields(section)},
        **({"required": required} if required else {}),
    }


def read(section: type[T], value: JsonObject) -> T:
    """A dataclass from a JSON object that fits its schema; keys that are left out take their defaults.

    :param section: the dataclass.
    :param value: the JSON object.
    """
    known = (each for each in fields(section) if each.name in value)  # type: ignore[arg-type]
    return section(**{each.name: each.metadata["read"](value[each.name]) for each in known})


def written(section: Any) -> Json:
    """The JSON object of a dataclass, with nothing left to defaults but keys that came later.

    :param section: the dataclass's value.
    """
    return {
        each.name: each.metadata["absent"]
        if (value := getattr(section, each.name)) is None
        else each.metadata["write"](value)
        for each in fields(section)
        if not (each.metadata["later"] and getattr(section, each.name) == each.default)
    }
