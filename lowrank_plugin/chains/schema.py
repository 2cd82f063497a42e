# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The JSON schema of the record that a compressed model carries."""

from __future__ import annotations

from lowrank_hooks import NORMS
from lowrank_plugin.ranks.plan import ACCURACY_SCHEMA, CHANGE_SCHEMA
from lowrank_plugin.support.validation import Json

COUNTED = ("macs", "parameters")
"""Costs that every record tells."""

_STAGE = {
    "type": "object",
    "required": ["out", "in", "kernel", "groups"],
    "properties": {
        "out": {"type": "integer"},
        "in": {"type": "integer"},
        "kernel": {"type": "array", "items": {"type": "integer"}},
        "groups": {"type": "integer"},
    },
}
_LAYER = {
    "type": "object",
    "required": ["decomposer", "rank", "kind", "stages", "bias", "macs", "parameters", "status"],
    "properties": {
        "decomposer": {"type": "string"},
        "rank": {"type": "array", "items": {"type": "integer"}},
        "kind": {"type": "string"},
        "stages": {"type": "array", "items": _STAGE},
        "bias": {"type": "boolean"},
        "macs": CHANGE_SCHEMA,
        "parameters": CHANGE_SCHEMA,
        "status": {"type": "string"},
        "statistics": {"type": "object"},
        "plugins": {"type": "object", "additionalProperties": {"type": "string"}},
        "plain": {"type": "object", "required": ["padding", "pad"]},
    },
}
RECORD_SCHEMA: Json = {
    "type": "object",
    "required": ["norm", "settings", "model", "layers"],
    "properties": {
        "norm": {"enum": list(NORMS)},
        "settings": {"type": "object"},
        "model": {
            "type": "object",
            "required": list(COUNTED),
            "properties": dict.fromkeys(COUNTED, CHANGE_SCHEMA),
        },
        "allocation": {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
        "unit": {"type": ["string", "null"]},
        "layers": {"type": "object", "additionalProperties": _LAYER},
        "skipped": {"type": "object", "additionalProperties": {"type": "string"}},
        "accuracy": ACCURACY_SCHEMA,
        "distilled": {"type": "object", "additionalProperties": CHANGE_SCHEMA},
        "earlier": {"type": "object"},
    },
}
