# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What was done to a model, layer by layer: the record that it carries, as a value and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from lowrank_hooks import Rank, StageShape
from lowrank_plugin.chains.schema import COUNTED, RECORD_SCHEMA
from lowrank_plugin.costs.counted import Chain
from lowrank_plugin.errors import LowRankError, PlanError
from lowrank_plugin.ranks.plan import Accuracy, Change, Plan
from lowrank_plugin.ranks.proposals import DENSE
from lowrank_plugin.settings import Settings
from lowrank_plugin.support.validation import Json, JsonObject, validate

RECORD = "lowrank_record"
"""The attribute of a compressed model that holds its record, a JSON value."""

_PREDICTED = "predicted_"


@dataclass(frozen=True)
class RecordedLayer:
    """What became of one layer.

    :param decomposer: the decomposer's name, or ``"dense"`` where the layer stayed.
    :param rank: its rank; empty for dense.
    :param kind: the name of its adapter, such as ``"Conv2d"``.
    :param stages: the sizes of its chain for one group; empty for dense.
    :param bias: whether the last stage of the chain has a bias.
    :param costs: ``"macs"`` for one sample, and ``"parameters"``: weights, and biases where the layer had none.
    :param status: how the fit ended, or why the layer stayed.
    :param predicted_error: relative error as planned; None where it was not known.
    :param error: relative error of the layer's output on the calibration data, or of its kernel in the Frobenius norm
        where there was none; None for dense.
    :param effective_rank: in how many directions the layer's input patches vary, where that is known.
    :param solver_bytes: peak extra memory of the fit, as its decomposer stated it.
    :param seconds: time of the fit; None for dense.
    :param statistics: what the solver tells.
    :param plugins: the distributions that the decomposer and the adapter are of; told in states only.
    :param plain: of a layer of a class of its own, how the plain layer pads that stood for it.
    """

    decomposer: str
    rank: Rank
    kind: str
    stages: Chain
    bias: bool
    costs: Mapping[str, Change]
    status: str
    predicted_error: float | None = None
    error: float | None = None
    effective_rank: float | None = None
    solver_bytes: int | None = None
    seconds: float | None = None
    statistics: JsonObject = field(default_factory=dict)
    plugins: Mapping[str, str] | None = None
    plain: JsonObject | None = None

    @property
    def is_chain(self) -> bool:
        """Whether a chain took the layer's place."""
        return self.decomposer != DENSE

    @classmethod
    def from_json(cls, entry: JsonObject) -> RecordedLayer:
        """Read a valid entry of a record's ``"layers"``.

        :param entry: the JSON value.
        """
        told = ("predicted_error", "error", "effective_rank", "solver_bytes", "seconds", "plugins", "plain")
        return cls(
            entry["decomposer"],
            tuple(entry["rank"]),
            entry["kind"],
            tuple(
                StageShape(each["out"], each["in"], tuple(each["kernel"]), each["groups"]) for each in entry["stages"]
            ),
            entry["bias"],
            {unit: Change(*entry[unit]) for unit in COUNTED},
            entry["status"],
            statistics=dict(entry.get("statistics", {})),
            **{key: entry.get(key) for key in told},
        )

    def to_json(self) -> Json:
        """The entry of this layer in the record."""
        return {
            "decomposer": self.decomposer,
            "rank": list(self.rank),
            "kind": self.kind,
            "stages": [
                {
                    "out": each.out_channels,
                    "in": each.in_channels,
                    "kernel": list(each.kernel_size),
                    "groups": each.groups,
                }
                for each in self.stages
            ],
            "bias": self.bias,
            **{unit: list(self.costs[unit]) for unit in COUNTED},
            "solver_bytes": self.solver_bytes,
            "predicted_error": self.predicted_error,
            "effective_rank": self.effective_rank,
            "error": self.error,
            "status": self.status,
            "seconds": self.seconds,
            "statistics": dict(self.statistics),
            **({} if self.plugins is None else {"plugins": dict(self.plugins)}),
            **({} if self.plain is None else {"plain": dict(self.plain)}),
        }


@dataclass(frozen=True)
class Measured:
    """What the whole model costs by measurement, beside what was planned.

    :param unit: the name of the cost.
    :param before: of the original; None where it was gone and the plan does not tell.
    :param after: of the compressed model.
    :param planned: of the whole model as planned; None where the plan does not tell.
    :param layers: as planned, by layer name; None where the plan does not tell.
    :param facts: what the plan was measured on; None where it does not tell.
    """

    unit: str
    before: float | None
    after: float
    planned: Change | None
    layers: Mapping[str, Change | None]
    facts: Mapping[str, str] | None

    @classmethod
    def from_json(cls, record: JsonObject) -> Measured | None:
        """Find it in a record; None where nothing was measured.

        :param record: the JSON value; the unit is what stands there with and without ``predicted_``.
        """
        model = record["model"]
        unit = next((key.removeprefix(_PREDICTED) for key in model if key.startswith(_PREDICTED)), None)
        if unit is None:
            return None
        key = _PREDICTED + unit
        layers = {name: _change_or_none(entry.get(key)) for name, entry in record["layers"].items()}
        before, after = model[unit]
        return cls(unit, before, after, _change_or_none(model[key]), layers, record.get("measured_on"))


@dataclass(frozen=True)
class Record:
    """What was done to a model.

    :param norm: the norm of the errors.
    :param settings: what the user asked for.
    :param costs: of the whole model, ``"macs"`` for one sample and ``"parameters"``.
    :param layers: what became of each layer that could be compressed, the chains first.
    :param skipped: why other layers were left alone.
    :param allocation: how good the plan was, see :class:`lowrank_plugin.ranks.plan.Plan`.
    :param accuracy: the course of the search, for the budget ``"accuracy_drop"``.
    :param distilled: the errors of distilled blocks, before and after; empty where nothing was distilled.
    :param measured: what the whole model measures, where a runtime or a measured budget was given.
    :param earlier: what had been done to the model before, where it was a compressed one already.
    :param unit: what the losses of ``allocation`` are in; None where that is not known.
    """

    norm: str
    settings: Settings
    costs: Mapping[str, Change]
    layers: Mapping[str, RecordedLayer]
    skipped: Mapping[str, str] = field(default_factory=dict)
    allocation: Mapping[str, float] | None = None
    accuracy: Accuracy | None = None
    distilled: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    measured: Measured | None = None
    earlier: Record | None = None
    unit: str | None = None

    @classmethod
    def from_json(cls, value: JsonObject) -> Record:
        """Read what :meth:`to_json` wrote.

        :param value: a JSON value.
        :raises PlanError: where it is malformed; names the entry and what was expected there.
        """
        try:
            validate(value, RECORD_SCHEMA, "the record")
            settings = Settings.from_mapping(value["settings"])
        except ValueError as error:
            raise PlanError(str(error)) from error
        return cls(
            value["norm"],
            settings,
            {unit: Change(*value["model"][unit]) for unit in COUNTED},
            {name: RecordedLayer.from_json(entry) for name, entry in value["layers"].items()},
            dict(value.get("skipped", {})),
            value.get("allocation"),
            Accuracy.from_json(value["accuracy"]) if "accuracy" in value else None,
            {name: (before, after) for name, (before, after) in value.get("distilled", {}).items()},
            Measured.from_json(value),
            cls.from_json(value["earlier"]) if "earlier" in value else None,
            value.get("unit"),
        )

    def to_json(self) -> Json:
        """A JSON value."""
        model: Json = {unit: list(self.costs[unit]) for unit in COUNTED}
        layers = {name: layer.to_json() for name, layer in self.layers.items()}
        if self.measured is not None:
            unit, key = self.measured.unit, _PREDICTED + self.measured.unit
            model |= {unit: [self.measured.before, self.measured.after], key: _listed(self.measured.planned)}
            for name, entry in layers.items():
                entry[key] = _listed(self.measured.layers.get(name))
        return {
            "norm": self.norm,
            "settings": self.settings.to_mapping(),
            "model": model,
            "allocation": None if self.allocation is None else dict(self.allocation),
            **({} if self.unit is None else {"unit": self.unit}),
            "layers": layers,
            "skipped": dict(self.skipped),
            **({} if self.accuracy is None else {"accuracy": self.accuracy.to_json()}),
            **(
                {"distilled": {name: list(errors) for name, errors in self.distilled.items()}} if self.distilled else {}
            ),
            **({} if self.measured is None else {"measured_on": self.measured.facts and dict(self.measured.facts)}),
            **({} if self.earlier is None else {"earlier": self.earlier.to_json()}),
        }

    @property
    def rounds(self) -> list[Record]:
        """What was done one after the other, this last."""
        return [*(self.earlier.rounds if self.earlier else ()), replace(self, earlier=None)]

    @classmethod
    def of_rounds(cls, rounds: Sequence[Record]) -> Record:
        """Put together again what :attr:`rounds` took apart.

        :param rounds: at least one.
        """
        *before, last = rounds
        return replace(last, earlier=cls.of_rounds(before) if before else None)

    @property
    def chains(self) -> dict[str, RecordedLayer]:
        """The layers that a chain took the place of, in this round."""
        return {name: layer for name, layer in self.layers.items() if layer.is_chain}

    def with_measured(self, plan: Plan, unit: str, costs: Sequence[float]) -> Record:
        """The record with what the whole model costs by measurement; what the plan predicted stands beside it.

        :param plan: the plan that was followed.
        :param unit: the name of the cost.
        :param costs: of the original and the compressed model, or of the latter only, where the former is gone.
        """
        planned = plan.costs.get(unit)
        before = costs[0] if len(costs) == 2 else planned and planned.before
        layers = {name: plan.layers[name].costs.get(unit) for name in self.layers}
        return replace(self, measured=Measured(unit, before, costs[-1], planned, layers, plan.measured_on))

    def with_accuracy(self, accuracy: Accuracy) -> Record:
        """The record with the course of the search that the model came out of.

        :param accuracy: the course.
        """
        return replace(self, accuracy=accuracy)


def attach(model: nn.Module, record: Record) -> None:
    """Have a model carry its record, as a JSON value under the attribute ``RECORD``.

    :param model: the compressed model.
    :param record: what was done to it.
    """
    setattr(model, RECORD, record.to_json())


def record_of(model: nn.Module) -> Record:
    """The record that a model carries.

    >>> import lowrank_plugin, torch
    >>> small = lowrank_plugin.decompose(nn.Linear(8, 8), ranks={"": 2}, example_input=torch.ones(1, 8))
    >>> record_of(small).layers[""].costs["macs"]
    Change(before=64.0, after=32.0)

    :param model: a compressed model.
    :raises LowRankError: where it carries no record.
    """
    value = getattr(model, RECORD, None)
    if value is None:
        msg = "This model carries no record of a low-rank decomposition; pass what decompose or apply returned."
        raise LowRankError(msg)
    return Record.from_json(value)


def _change_or_none(value: Sequence[float] | None) -> Change | None:
    return None if value is None else Change(*value)


def _listed(change: Change | None) -> list[float] | None:
    return None if change is None else list(change)
