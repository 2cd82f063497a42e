# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What the rest of a config decides for its ``"lowrank"`` section, whichever NNCF reads it."""

from __future__ import annotations

from collections.abc import Collection

from lowrank_plugin.host import Json, JsonObject


def with_defaults(section: JsonObject, algorithms: Collection[object]) -> Json:
    """Where the same config quantizes, chains are of the decomposers that gain from 8 bits.

    >>> with_defaults({"budget": {"macs": 0.5}}, ["lowrank", "quantization"])
    {'budget': {'macs': 0.5}, 'decomposers': 'int8'}

    :param section: the ``"lowrank"`` section; what it says itself counts.
    :param algorithms: the names of all algorithms in the config.
    :return: a section that leaves nothing to them.
    """
    if "quantization" not in algorithms or "decomposers" in section:
        return dict(section)
    return {**section, "decomposers": "int8"}
