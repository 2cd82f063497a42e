# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The plan: one choice for every layer, as a value and as the JSON that users may read, save and edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

from lowrank_hooks import NORMS, Rank
from lowrank_plugin.errors import PlanError
from lowrank_plugin.layers.survey import Survey
from lowrank_plugin.ranks.proposals import DENSE
from lowrank_plugin.settings import Settings
from lowrank_plugin.support.messages import suggestion
from lowrank_plugin.support.validation import Json, JsonObject, validate

FORMAT = 1

_NUMBER = {"type": "number"}
_NUMBER_OR_NULL = {"type": ["number", "null"]}
CHANGE_SCHEMA = {
    "type": "array",
    "items": _NUMBER,
    "minItems": 2,
    "maxItems": 2,
    "description": "a list of two numbers, before and after",
}
_EVALUATION = {
    "type": "object",
    "required": ["macs", "value", "drop"],
    "properties": {"macs": _NUMBER, "value": _NUMBER, "drop": _NUMBER},
}
ACCURACY_SCHEMA: Json = {
    "type": "object",
    "required": ["original", "allowed_drop", "evaluations", "chosen"],
    "properties": {
        "original": _NUMBER,
        "allowed_drop": _NUMBER,
        "evaluations": {"type": "array", "items": _EVALUATION},
        "chosen": {"anyOf": [{"type": "null"}, _EVALUATION]},
    },
}
_LAYER = {
    "type": "object",
    "required": ["decomposer"],
    "properties": {
        "decomposer": {"type": "string"},
        "rank": {
            "type": "array",
            "items": {"type": "integer", "minimum": 1},
            "description": "a list of whole numbers from 1",
        },
        "error": _NUMBER_OR_NULL,
        "macs": CHANGE_SCHEMA,
        "parameters": CHANGE_SCHEMA,
        "effective_rank": _NUMBER_OR_NULL,
        "reason": {"type": ["string", "null"]},
        "solver_bytes": _NUMBER_OR_NULL,
    },
}
_SCHEMA: Json = {
    "type": "object",
    "required": ["format", "settings", "norm", "layers"],
    "properties": {
        "format": {"const": FORMAT, "description": f"{FORMAT}, the format this version reads"},
        "settings": {"type": "object"},
        "norm": {"enum": list(NORMS)},
        "model": {"type": "object", "additionalProperties": CHANGE_SCHEMA},
        "allocation": {"type": ["object", "null"], "additionalProperties": _NUMBER},
        "unit": {"type": ["string", "null"]},
        "memory": {"type": "object", "additionalProperties": _NUMBER},
        "layers": {"type": "object", "additionalProperties": _LAYER},
        "skipped": {"type": "object", "additionalProperties": {"type": "string"}},
        "accuracy": ACCURACY_SCHEMA,
        "measured_on": {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
    },
}


class Change(NamedTuple):
    """What something costs before and after.

    :param before: as the model is.
    :param after: compressed.
    """

    before: float
    after: float


@dataclass(frozen=True)
class PlannedLayer:
    """What becomes of one layer.

    :param decomposer: the decomposer's name, or ``"dense"`` where the layer stays.
    :param rank: its rank; empty for dense.
    :param error: predicted relative error; None where it is not known before the fit.
    :param costs: by unit: ``"macs"`` for one sample, ``"parameters"``, and the unit that is measured, where there is
        one.
    :param effective_rank: in how many directions the layer's input patches vary, where that is known.
    :param reason: why the layer stays dense; None where it does not, or the plan was edited.
    :param solver_bytes: peak extra memory of its fit, where its decomposer states one.
    """

    decomposer: str
    rank: Rank = ()
    error: float | None = None
    costs: Mapping[str, Change] = field(default_factory=dict)
    effective_rank: float | None = None
    reason: str | None = None
    solver_bytes: int | None = None

    @classmethod
    def from_json(cls, entry: JsonObject) -> PlannedLayer:
        """Read a valid entry of a plan's ``"layers"``.

        :param entry: the JSON value; all keys but ``"decomposer"`` may be missing.
        """
        known = {key: entry.get(key) for key in ("error", "effective_rank", "reason", "solver_bytes")}
        costs = {key: Change(*value) for key, value in entry.items() if key != "rank" and _is_change(value)}
        return cls(entry["decomposer"], tuple(entry.get("rank", ())), costs=costs, **known)

    def to_json(self) -> Json:
        """The entry of this layer in the plan."""
        costs = {unit: list(change) for unit, change in self.costs.items()}
        counted: dict[str, list[float]] = {unit: costs.pop(unit) for unit in ("macs", "parameters") if unit in costs}
        dense = self.decomposer == DENSE
        return {
            "decomposer": self.decomposer,
            "rank": list(self.rank),
            "error": self.error,
            **counted,
            "effective_rank": self.effective_rank,
            **({} if self.reason is None else {"reason": self.reason}),
            **({} if dense and self.solver_bytes is None else {"solver_bytes": self.solver_bytes}),
            **costs,
        }


@dataclass(frozen=True)
class Evaluation:
    """One network that was tried in the search for the smallest one that is good enough.

    :param macs: the share of the MACs that it has.
    :param value: what ``validation_fn`` returned for it.
    :param drop: by how much that is less than for the original.
    """

    macs: float
    value: float
    drop: float


@dataclass(frozen=True)
class Accuracy:
    """The course of that search.

    :param original: the quality of the original.
    :param allowed_drop: by how much the quality may be less.
    :param evaluations: the networks tried, in order.
    :param chosen: that of the network that was taken; None where no smaller one was good enough.
    """

    original: float
    allowed_drop: float
    evaluations: tuple[Evaluation, ...]
    chosen: Evaluation | None

    @classmethod
    def from_json(cls, value: JsonObject) -> Accuracy:
        """Read what :meth:`to_json` wrote.

        :param value: a JSON value that fits ``ACCURACY_SCHEMA``.
        """
        evaluations = tuple(Evaluation(**each) for each in value["evaluations"])
        chosen = None if value["chosen"] is None else Evaluation(**value["chosen"])
        return cls(value["original"], value["allowed_drop"], evaluations, chosen)

    def to_json(self) -> Json:
        """A JSON value."""
        return {**asdict(self), "evaluations": [asdict(each) for each in self.evaluations]}


@dataclass(frozen=True)
class Plan:
    """One choice for every layer.

    >>> made = Plan(Settings(ranks={"conv": (8,)}), "frobenius", {}, {"conv": PlannedLayer("svd", (8,))})
    >>> Plan.from_json(made.to_json()) == made
    True

    :param settings: what the user asked for.
    :param norm: the norm of the errors.
    :param costs: of the whole model, by unit; as predicted, or as measured where the unit is a measured one.
    :param layers: what becomes of each layer that could be compressed.
    :param skipped: why other layers are left alone.
    :param allocation: for the layers that share the budget, the ``predicted_loss``, the ``lower_bound`` that no other
        choice of their options under the budget can be below, and the ``gap`` between the two. None where there is no
        budget.
    :param memory: ``peak``, bytes that collecting statistics was predicted to need beyond running the model, and
        ``passes``, how many times the data was run over for it; empty where nothing was collected.
    :param measured_on: where the measured unit was measured; None where nothing was.
    :param accuracy: the course of the search, for the budget ``"accuracy_drop"``.
    :param unit: what the losses of ``allocation`` are in, as ``"nats"``; None where that is not known.
    """

    settings: Settings
    norm: str
    costs: Mapping[str, Change]
    layers: Mapping[str, PlannedLayer]
    skipped: Mapping[str, str] = field(default_factory=dict)
    allocation: Mapping[str, float] | None = None
    memory: Mapping[str, int] = field(default_factory=dict)
    measured_on: Mapping[str, str] | None = None
    accuracy: Accuracy | None = None
    unit: str | None = None

    @classmethod
    def from_json(cls, value: JsonObject) -> Plan:
        """Read a plan, edited or not; of a layer only the decomposer and its rank must be told.

        :param value: a JSON value.
        :raises PlanError: where it is malformed; names the entry and what was expected there.
        """
        try:
            validate(value, _SCHEMA, "the plan")
            settings = Settings.from_mapping(value["settings"])
        except ValueError as error:
            raise PlanError(str(error)) from error
        accuracy = value.get("accuracy")
        return cls(
            settings,
            value["norm"],
            {unit: Change(*change) for unit, change in value.get("model", {}).items()},
            {name: PlannedLayer.from_json(entry) for name, entry in value["layers"].items()},
            dict(value.get("skipped", {})),
            value.get("allocation"),
            dict(value.get("memory", {})),
            value.get("measured_on"),
            None if accuracy is None else Accuracy.from_json(accuracy),
            value.get("unit"),
        )

    def to_json(self) -> Json:
        """The plan as users get it."""
        return {
            "format": FORMAT,
            "settings": self.settings.to_mapping(),
            "norm": self.norm,
            "model": {unit: list(change) for unit, change in self.costs.items()},
            "allocation": None if self.allocation is None else dict(self.allocation),
            **({} if self.unit is None else {"unit": self.unit}),
            "memory": dict(self.memory),
            "layers": {name: layer.to_json() for name, layer in self.layers.items()},
            "skipped": dict(self.skipped),
            **({} if self.accuracy is None else {"accuracy": self.accuracy.to_json()}),
            **({} if self.measured_on is None else {"measured_on": dict(self.measured_on)}),
        }

    @property
    def settings_to_follow(self) -> Settings:
        """The settings the plan is applied with: those it was made with, and the norm it was made in."""
        return replace(self.settings, norm=self.norm)

    def ranks(self, surveyed: Survey) -> dict[str, tuple[str, Rank]]:
        """The layers that the plan compresses, checked against a model.

        :param surveyed: the survey of the model it is to be applied to.
        :return: decomposer and rank by layer name.
        :raises PlanError: where the plan names a layer that cannot be compressed or lacks a rank.
        """
        ranks: dict[str, tuple[str, Rank]] = {}
        for name, layer in self.layers.items():
            if layer.decomposer == DENSE:
                continue
            if name not in surveyed.layers:
                reason = surveyed.refusals.get(name)
                msg = f"The plan compresses {name!r}, but " + (
                    f"that layer cannot be: {reason}."
                    if reason
                    else f"the model has no such layer. {suggestion(name, surveyed.layers)}"
                )
                raise PlanError(msg)
            if not layer.rank:
                msg = (
                    f"The plan gives {name!r} the decomposer {layer.decomposer!r} but no rank; add a list of integers."
                )
                raise PlanError(msg)
            ranks[name] = (layer.decomposer, layer.rank)
        return ranks

    def with_costs(self, unit: str, layers: Mapping[str, Change], whole: Change, facts: Mapping[str, str]) -> Plan:
        """The plan with what its layers and the whole model cost by measurement.

        :param unit: the name of the cost.
        :param layers: by layer name, for each layer of the plan.
        :param whole: of the whole model.
        :param facts: what it was measured on.
        """
        measured = {
            name: replace(layer, costs={**layer.costs, unit: Change(*layers[name])})
            for name, layer in self.layers.items()
        }
        costs = {**self.costs, unit: Change(*whole)}
        return replace(self, costs=costs, layers=measured, measured_on=dict(facts))

    def with_accuracy(self, accuracy: Accuracy) -> Plan:
        """The plan with the course of the search that it came out of.

        :param accuracy: the course.
        """
        return replace(self, accuracy=accuracy)

    def with_solver_bytes(self, stated: Mapping[str, int | None]) -> Plan:
        """The plan with the peak extra memory of the fits.

        :param stated: bytes by layer name; None where a decomposer states nothing.
        """
        layers = {
            name: replace(layer, solver_bytes=stated[name]) if name in stated else layer
            for name, layer in self.layers.items()
        }
        return replace(self, layers=layers)

    def with_reasons(self, reason: str) -> Plan:
        """The plan with one reason why all dense layers stay so.

        :param reason: the reason.
        """
        layers = {
            name: replace(layer, reason=reason) if layer.decomposer == DENSE else layer
            for name, layer in self.layers.items()
        }
        return replace(self, layers=layers)


def _is_change(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(each, float | int) for each in value)
