# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The ``"lowrank"`` section: its schema, its defaults, and its value object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.support.validation import validate

_NAMES = {"type": "array", "items": {"type": "string"}}
_RANK = {"type": "integer", "minimum": 1, "description": "a whole number from 1"}

SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "budget": {
            "type": ["object", "null"],
            "minProperties": 1,
            "maxProperties": 1,
            "properties": {
                "accuracy_drop": {
                    "type": "number",
                    "minimum": 0,
                    "description": "a number from 0, in the units of validation_fn",
                }
            },
            "additionalProperties": {
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 1,
                "description": "a number above 0 and at most 1, the share of the original that may remain",
            },
            "description": 'one entry such as {"macs": 0.5}, {"parameters": 0.5} or {"error": 0.1}',
        },
        "ranks": {
            "type": "object",
            "additionalProperties": {
                "anyOf": [_RANK, {"type": "array", "items": _RANK, "minItems": 1}],
                "description": "a rank (a whole number from 1) or a list of ranks",
            },
            "description": "{layer name or pattern: rank or [ranks]}",
        },
        "decomposers": {
            "anyOf": [{"enum": ["auto", "int8"]}, {**_NAMES, "minItems": 1}],
            "description": '"auto", "int8" or a list of names of decomposers',
        },
        "norm": {
            "enum": ["covariance", "two-sided", "frobenius", None],
            "description": '"covariance", "two-sided", "frobenius" or null (by data)',
        },
        "policy": {"type": "string", "description": "the name of a rank policy"},
        "rank_multiple": _RANK,
        "stability": {
            "anyOf": [
                {"const": False},
                {
                    "type": "object",
                    "properties": {"slack": {"type": "number", "exclusiveMinimum": 0}},
                    "required": ["slack"],
                    "additionalProperties": False,
                },
            ],
            "description": '{"slack": s} with s above 0, or false',
        },
        "repair": {"enum": ["none", "moments", "distill"], "description": '"none", "moments" or "distill"'},
        "distillation": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "steps": {**_RANK, "description": "a whole number from 1, the most solver steps for a block"},
                "network_steps": {
                    "type": "integer",
                    "minimum": 0,
                    "description": "a whole number from 0, solver steps for the whole network's logits",
                },
                "checkpoint": {"type": ["string", "null"], "description": "a file that progress is kept in, or null"},
            },
            "description": 'an object such as {"steps": 6}',
        },
        "runtime": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": {
                "backend": {"enum": ["pytorch", "openvino"], "description": '"pytorch" or "openvino"'},
                "precision": {"enum": ["fp32", "int8"], "description": '"fp32" or "int8"'},
            },
            "description": 'an object such as {"backend": "openvino", "precision": "fp32"}, or null',
        },
        "target_scopes": {
            "anyOf": [{"type": "null"}, {"type": "string"}, _NAMES],
            "description": "a layer name or {re}pattern, or a list of them",
        },
        "ignored_scopes": {
            "anyOf": [{"type": "null"}, {"type": "string"}, _NAMES],
            "description": "a layer name or {re}pattern, or a list of them",
        },
        "calibration": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "samples": {**_RANK, "description": "a whole number from 1, the most samples used"},
                "positions": {
                    "type": "number",
                    "exclusiveMinimum": 0,
                    "description": "a number above 0, patch positions collected for each unknown of a covariance row",
                },
                "memory_gb": {
                    "type": "number",
                    "exclusiveMinimum": 0,
                    "description": "a number above 0, gigabytes that statistics may need while they are collected",
                },
            },
            "description": 'an object such as {"samples": 512}',
        },
        "seed": {"type": "integer", "minimum": 0, "description": "a whole number from 0"},
        "device": {"type": ["string", "null"], "description": 'a torch device such as "cpu" or "cuda:0", or null'},
        "on_failure": {"enum": ["keep_dense", "raise"], "description": '"keep_dense" or "raise"'},
    },
}
"""JSON schema of the section, without ``"algorithm"``."""


@dataclass(frozen=True)
class Settings:
    """The section, validated and with its defaults filled in.

    >>> Settings.from_mapping({"budget": {"macs": 0.5}}).rank_multiple
    8

    :param budget: what may remain of the original, one entry; None where all ranks are given by hand.
    :param ranks: ranks by layer name or pattern; they override the allocation there.
    :param decomposers: names that may compete, or ``"auto"``, or ``"int8"`` for a network that is to be quantized.
    :param norm: the error norm; None takes the covariance norm where there is data.
    :param policy: how the budget is shared among the layers.
    :param rank_multiple: ranks are multiples of this.
    :param slack: the stability slack; None where stability is off.
    :param repair: what follows the replacement.
    :param runtime: where latency is measured; None measures it in PyTorch, and only where the budget is a latency.
    :param steps: the most solver steps for a block that is distilled.
    :param network_steps: the most solver steps for the whole network, when its blocks are distilled.
    :param checkpoint: the file that a distillation's progress is kept in; None for none.
    :param target_scopes: layers that may be compressed; None for all.
    :param ignored_scopes: layers that may not.
    :param samples: the most calibration samples used.
    :param positions: patch positions collected per layer, as a multiple of the width of its covariance.
    :param memory_gb: gigabytes that statistics may need while they are collected; what does not fit takes more passes.
    :param seed: seed of everything drawn.
    :param device: where statistics and solvers run; None for the model's own device.
    :param on_failure: what becomes of a layer that cannot be solved.
    """

    budget: Mapping[str, float] | None = None
    ranks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    decomposers: tuple[str, ...] | str = "auto"
    norm: str | None = None
    policy: str = "lagrangian"
    rank_multiple: int = 8
    slack: float | None = 0.02
    repair: str = "moments"
    steps: int = 6
    network_steps: int = 4
    checkpoint: str | None = None
    runtime: Mapping[str, str] | None = None
    target_scopes: tuple[str, ...] | None = None
    ignored_scopes: tuple[str, ...] = ()
    samples: int = 512
    positions: float = 12.0
    memory_gb: float = 8.0
    seed: int = 0
    device: str | None = None
    on_failure: str = "keep_dense"

    @classmethod
    def from_mapping(cls, section: Mapping[str, Any]) -> Settings:
        """Validate a section and fill in its defaults.

        :param section: the keys of the ``"lowrank"`` section, without ``"algorithm"``.
        :raises ConfigurationError: naming the key, the value and what was expected.
        """
        validate(dict(section), SCHEMA, 'the "lowrank" section')
        values = dict(section)
        nested = {**values.pop("calibration", {}), **values.pop("distillation", {})}
        if "stability" in values:
            stability = values.pop("stability")
            values["slack"] = stability["slack"] if stability else None
        values["ranks"] = {
            name: (rank,) if isinstance(rank, int) else tuple(rank) for name, rank in values.get("ranks", {}).items()
        }
        if not isinstance(values.get("decomposers", "auto"), str):
            values["decomposers"] = tuple(values["decomposers"])
        if values.get("target_scopes") is not None:
            values["target_scopes"] = listed_scopes(values["target_scopes"])
        values["ignored_scopes"] = listed_scopes(values.get("ignored_scopes"))
        settings = cls(**values, **nested)
        if settings.budget is None and not settings.ranks:
            msg = (
                'Nothing to do: give a "budget" such as {"macs": 0.5}, or "ranks" such as {"layer1.0.conv1": [32, 32]}.'
            )
            raise ConfigurationError(msg)
        return settings

    def to_mapping(self) -> dict[str, Any]:
        """The section that gives these settings, as plain JSON with nothing left to defaults."""
        section = {each.name: getattr(self, each.name) for each in fields(self)}
        slack = section.pop("slack")
        calibration = {key: section.pop(key) for key in ("samples", "positions", "memory_gb")}
        distillation = {key: section.pop(key) for key in ("steps", "network_steps", "checkpoint")}
        section = {key: list(value) if isinstance(value, tuple) else value for key, value in section.items()}
        return {
            **section,
            "budget": dict(self.budget) if self.budget else None,
            "runtime": None if self.runtime is None else dict(self.runtime),
            "ranks": {name: list(rank) for name, rank in self.ranks.items()},
            "stability": {"slack": slack} if slack else False,
            "calibration": calibration,
            "distillation": distillation,
        }


def listed_scopes(scopes: str | Sequence[str] | None) -> tuple[str, ...]:
    """Scopes one by one, whether a section has none, one or several.

    >>> listed_scopes("layer1"), listed_scopes(["conv", "fc"]), listed_scopes(None)
    (('layer1',), ('conv', 'fc'), ())

    :param scopes: the value of ``"target_scopes"`` or ``"ignored_scopes"``; None where the section has no such key.
    """
    if scopes is None:
        return ()
    return (scopes,) if isinstance(scopes, str) else tuple(scopes)
