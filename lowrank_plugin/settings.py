# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The ``"lowrank"`` section: each key once, with its default, its schema and how its value is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lowrank_hooks import NORMS
from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.outputs.kinds import AUTO, CALLABLE, IGNORE, KINDS, Described, read_described, written_described
from lowrank_plugin.support.keys import key, read, schema_of, written
from lowrank_plugin.support.validation import Json, JsonObject, validate

_COUNT = {"type": "integer", "minimum": 1}
_NAMES = {"type": "array", "items": {"type": "string"}}
_RANK = {**_COUNT, "description": "a whole number from 1"}
_SCOPES = {
    "anyOf": [{"type": "null"}, {"type": "string"}, _NAMES],
    "description": "a layer name or {re}pattern, or a list of them",
}


_OUTPUT = {
    "type": "object",
    "required": ["kind"],
    "additionalProperties": False,
    "properties": {
        "kind": {"enum": [*KINDS], "description": ", ".join(f'"{kind}"' for kind in KINDS)},
        "axis": {"type": "integer", "description": "a whole number, the axis of the classes"},
        "probabilities": {"type": "boolean", "description": "whether a sigmoid has been applied already"},
    },
    "description": 'an object such as {"kind": "softmax", "axis": 1}',
}
_OUTPUT_BY_NAME = {
    "anyOf": [_OUTPUT, {"enum": [IGNORE, None]}],
    "description": '"softmax", "sigmoid" or "values" for the kind of all outputs, and for one of them by name an '
    'object such as {"kind": "softmax", "axis": 1} or "ignore"',
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


@dataclass(frozen=True)
class Stability:
    """How sensitive the factors of canonical decompositions may be, see the decomposer ``cpd``.

    :param slack: how much more of the kernel's energy may be lost for the sake of stability.
    """

    slack: float = field(metadata=key({"type": "number", "exclusiveMinimum": 0, "description": "a number above 0"}))


@dataclass(frozen=True)
class Calibration:
    """How much of the data is looked at.

    :param samples: the most calibration samples used.
    :param positions: patch positions collected per layer, as a multiple of the width of its covariance.
    :param memory_gb: gigabytes that statistics may need while they are collected; what does not fit takes more passes.
    """

    samples: int = field(
        default=512, metadata=key({**_COUNT, "description": "a whole number from 1, the most samples used"})
    )
    positions: float = field(
        default=12.0,
        metadata=key(
            {
                "type": "number",
                "exclusiveMinimum": 0,
                "description": "a number above 0, patch positions collected for each unknown of a covariance row",
            }
        ),
    )
    memory_gb: float = field(
        default=8.0,
        metadata=key(
            {
                "type": "number",
                "exclusiveMinimum": 0,
                "description": "a number above 0, gigabytes that statistics may need while they are collected",
            }
        ),
    )


@dataclass(frozen=True)
class Distillation:
    """How long chains are distilled, for the repair ``"distill"``.

    :param steps: the most solver steps for a block that is distilled.
    :param network_steps: the most solver steps for the whole network, when its blocks are distilled.
    :param checkpoint: the file that a distillation's progress is kept in; None for none.
    """

    steps: int = field(
        default=6,
        metadata=key({**_COUNT, "description": "a whole number from 1, the most solver steps for a block"}),
    )
    network_steps: int = field(
        default=4,
        metadata=key(
            {
                "type": "integer",
                "minimum": 0,
                "description": "a whole number from 0, solver steps for the whole network's logits",
            }
        ),
    )
    checkpoint: str | None = field(
        default=None,
        metadata=key({"type": ["string", "null"], "description": "a file that progress is kept in, or null"}),
    )


@dataclass(frozen=True)
class Settings:
    """The section, validated and with its defaults filled in.

    >>> Settings.from_mapping({"budget": {"macs": 0.5}}).calibration.samples
    512

    :param budget: what may remain of the original, one entry; None where all ranks are given by hand.
    :param ranks: ranks by layer name or pattern; they override the allocation there.
    :param decomposers: names that may compete, or ``"auto"``, or ``"int8"`` for a network that is to be quantized.
    :param norm: the error norm; None takes the covariance norm where there is data.
    :param policy: how the budget is shared among the layers.
    :param rank_multiple: ranks are multiples of this.
    :param output: what the model's outputs are, and so what a change of them costs.
    :param repair: what follows the replacement.
    :param runtime: where latency is measured; None measures it in PyTorch, and only where the budget is a latency.
    :param target_scopes: layers that may be compressed; None for all.
    :param ignored_scopes: layers that may not.
    :param seed: seed of everything drawn.
    :param device: where statistics and solvers run; None for the model's own device.
    :param on_failure: what becomes of a layer that cannot be solved.
    :param stability: None where it is off.
    :param calibration: how much of the data is looked at.
    :param distillation: how long chains are distilled.
    """

    budget: Mapping[str, float] | None = field(
        default=None,
        metadata=key(
            {
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
            }
        ),
    )
    ranks: Mapping[str, tuple[int, ...]] = field(
        default_factory=dict,
        metadata=key(
            {
                "type": "object",
                "additionalProperties": {
                    "anyOf": [_RANK, {"type": "array", "items": _RANK, "minItems": 1}],
                    "description": "a rank (a whole number from 1) or a list of ranks",
                },
                "description": "{layer name or pattern: rank or [ranks]}",
            },
            read=lambda ranks: {
                name: (rank,) if isinstance(rank, int) else tuple(rank) for name, rank in ranks.items()
            },
        ),
    )
    decomposers: tuple[str, ...] | str = field(
        default="auto",
        metadata=key(
            {
                "anyOf": [{"enum": ["auto", "int8"]}, {**_NAMES, "minItems": 1}],
                "description": '"auto", "int8" or a list of names of decomposers',
            }
        ),
    )
    norm: str | None = field(
        default=None,
        metadata=key(
            {
                "enum": [*NORMS, None],
                "description": f"{', '.join(f'{name!r}' for name in NORMS)} or null (by data)".replace("'", '"'),
            }
        ),
    )
    policy: str = field(
        default="lagrangian", metadata=key({"type": "string", "description": "the name of a rank policy"})
    )
    rank_multiple: int = field(default=8, metadata=key(_RANK))
    output: Described = field(
        default=AUTO,
        metadata=key(
            {
                "anyOf": [
                    {"enum": [AUTO, CALLABLE]},
                    _OUTPUT,
                    {"type": "object", "additionalProperties": _OUTPUT_BY_NAME},
                ],
                "description": '"auto", {"kind": "softmax", "sigmoid" or "values", "axis": n}, or a mapping from '
                'outputs to that or "ignore"; in Python also a function (output, reference) -> loss of each sample',
            },
            read=read_described,
            write=written_described,
            later=True,
        ),
    )
    repair: str = field(
        default="moments",
        metadata=key({"enum": ["none", "moments", "distill"], "description": '"none", "moments" or "distill"'}),
    )
    runtime: Mapping[str, str] | None = field(
        default=None,
        metadata=key(
            {
                "type": ["object", "null"],
                "additionalProperties": False,
                "properties": {
                    "backend": {"type": "string", "description": 'the name of a runtime such as "openvino"'},
                    "precision": {"type": "string", "description": 'a precision such as "fp32" or "int8"'},
                },
                "description": 'an object such as {"backend": "openvino", "precision": "fp32"}, or null',
            }
        ),
    )
    target_scopes: tuple[str, ...] | None = field(
        default=None,
        metadata=key(_SCOPES, read=lambda scopes: None if scopes is None else listed_scopes(scopes)),
    )
    ignored_scopes: tuple[str, ...] = field(default=(), metadata=key(_SCOPES, read=listed_scopes))
    seed: int = field(
        default=0, metadata=key({"type": "integer", "minimum": 0, "description": "a whole number from 0"})
    )
    device: str | None = field(
        default=None,
        metadata=key({"type": ["string", "null"], "description": 'a torch device such as "cpu" or "cuda:0", or null'}),
    )
    on_failure: str = field(
        default="keep_dense",
        metadata=key({"enum": ["keep_dense", "raise"], "description": '"keep_dense" or "raise"'}),
    )
    stability: Stability | None = field(
        default=Stability(slack=0.02),
        metadata=key(
            {
                "anyOf": [{"const": False}, schema_of(Stability)],
                "description": '{"slack": s} with s above 0, or false',
            },
            read=lambda value: read(Stability, value) if value else None,
            absent=False,
        ),
    )
    calibration: Calibration = field(
        default=Calibration(),
        metadata=key(
            {**schema_of(Calibration), "description": 'an object such as {"samples": 512}'},
            read=lambda value: read(Calibration, value),
        ),
    )
    distillation: Distillation = field(
        default=Distillation(),
        metadata=key(
            {**schema_of(Distillation), "description": 'an object such as {"steps": 6}'},
            read=lambda value: read(Distillation, value),
        ),
    )

    @classmethod
    def from_mapping(cls, section: JsonObject, *, goal: bool = True) -> Settings:
        """Validate a section and fill in its defaults.

        >>> Settings.from_mapping({"ranks": {"conv": 8}, "stability": False}).ranks
        {'conv': (8,)}

        :param section: the keys of the ``"lowrank"`` section, without ``"algorithm"``.
        :param goal: whether the section must say how far to go, by a budget or by ranks.
        :raises ConfigurationError: naming the key, the value and what was expected.
        """
        output = section.get("output")
        # a function is no JSON
        checked = {**section, "output": CALLABLE} if callable(output) else _with_names(section)
        validate(checked, SCHEMA, 'the "lowrank" section')
        settings: Settings = read(cls, section)
        if goal and settings.budget is None and not settings.ranks:
            msg = (
                'Nothing to do: give a "budget" such as {"macs": 0.5}, or "ranks" such as {"layer1.0.conv1": [32, 32]}.'
            )
            raise ConfigurationError(msg)
        return settings

    def to_mapping(self) -> Json:
        """The section that gives these settings, as plain JSON with nothing left to defaults but ``"output"``.

        >>> Settings(budget={"macs": 0.5}).to_mapping()["stability"]
        {'slack': 0.02}
        """
        return written(self)


SCHEMA: Json = schema_of(Settings)
"""JSON schema of the section, without ``"algorithm"``."""


def _with_names(section: JsonObject) -> Json:
    """With outputs that go by their numbers under strings, as JSON has them."""
    output = section.get("output")
    if not isinstance(output, Mapping):
        return dict(section)
    return {**section, "output": {str(name): each for name, each in output.items()}}
