# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What was done, per layer: the record a compressed model carries, and its table."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lowrank_hooks import StageShape
from lowrank_plugin.chains.fitting import Fitted
from lowrank_plugin.costs.counted import macs
from lowrank_plugin.errors import LowRankError
from lowrank_plugin.layers.survey import Survey
from lowrank_plugin.ranks.proposals import DENSE

RECORD = "lowrank_record"
"""The attribute of a compressed model that holds its record, a JSON value."""


@dataclass(frozen=True)
class Report:
    """The record in readable form.

    :param record: the JSON value.
    """

    record: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The record itself: ``model`` with the MACs and parameters before and after, and ``layers``."""
        return dict(self.record)

    def to_str(self) -> str:
        """A table with a row a layer, the compressed ones first, and the totals."""
        table = Table(box=box.ASCII2, title="Low-rank decomposition", caption=_caption(self.record))
        for column in ("Layer", "Decomposer", "Rank", "MACs", "Parameters", "Rel. error", "Status"):
            table.add_column(column, justify="left" if column in ("Layer", "Decomposer", "Status") else "right")
        for name, entry in self.record["layers"].items():
            table.add_row(
                name,
                entry["decomposer"],
                "x".join(str(rank) for rank in entry["rank"]),
                _change(entry["macs"]),
                _change(entry["parameters"]),
                "" if entry["error"] is None else f"{entry['error']:.4f}",
                entry["status"],
            )
        for name, reason in self.record["skipped"].items():
            table.add_row(name, DENSE, "", "", "", "", f"Left alone: {reason}.")
        table.add_section()
        model = self.record["model"]
        table.add_row("whole model", "", "", _change(model["macs"]), _change(model["parameters"]), "", "")
        console = Console(file=io.StringIO(), width=200, color_system=None)
        console.print(table)
        return console.file.getvalue()  # type: ignore[attr-defined]

    def __str__(self) -> str:
        return self.to_str()


def report(compressed: nn.Module) -> Report:
    """What was done to a model.

    >>> import torch, lowrank_plugin
    >>> model = nn.Sequential(nn.Linear(8, 8))
    >>> small = lowrank_plugin.decompose(model, None, ranks={"0": 2}, example_input=torch.ones(1, 8))
    >>> report(small).to_dict()["layers"]["0"]["parameters"]
    [64, 32]

    :param compressed: a model that came out of :func:`lowrank_plugin.decompose` or :func:`lowrank_plugin.apply`.
    :raises LowRankError: where it carries no record.
    """
    record = getattr(compressed, RECORD, None)
    if record is None:
        msg = "This model carries no record of a low-rank decomposition; pass what decompose or apply returned."
        raise LowRankError(msg)
    return Report(record)


def make_record(
    plan: Mapping[str, Any],
    surveyed: Survey,
    fitted: Mapping[str, Fitted],
    templates: Mapping[str, nn.Module],
    after: nn.Module,
) -> dict[str, Any]:
    """Write down what was done.

    :param plan: the plan that was followed.
    :param surveyed: the survey, with the refusals met on the way.
    :param fitted: what was put in place.
    :param templates: the layers of the survey, as they were.
    :param after: the model as it is.
    :return: a JSON value.
    """
    layers = {}
    saved = 0.0
    for name, entry in plan["layers"].items():
        if name not in surveyed.layers:
            continue
        layer, module = surveyed.layers[name], templates[name]
        each = fitted.get(name)
        dense = StageShape(layer.shape.out_channels, layer.shape.in_channels, layer.shape.kernel_size)
        shapes = each.factorization.shapes if each and each.factorization else (dense,)
        cost = [
            macs(stages, layer.positions(module, stages), layer.shape.groups) / surveyed.samples
            for stages in ((dense,), shapes)
        ]
        saved += cost[0] - cost[1]
        bias = after.get_submodule(name)[-1].bias if each else None  # type: ignore[index]
        added = 0 if bias is None or isinstance(module.bias, Tensor) else bias.numel()
        layers[name] = {
            "decomposer": entry["decomposer"] if each else DENSE,
            "rank": list(entry.get("rank", [])) if each else [],
            "kind": layer.kind,
            "stages": [_sizes(shape) for shape in shapes] if each else [],
            "bias": bias is not None,
            "macs": cost,
            "parameters": [
                layer.shape.groups * dense.parameters,
                layer.shape.groups * sum(shape.parameters for shape in shapes) + added,
            ],
            "solver_bytes": entry.get("solver_bytes") if each else None,
            "predicted_error": entry.get("error"),
            "effective_rank": entry.get("effective_rank"),
            "error": each.output_error if each else None,
            "status": each.solution.status.value if each else f"Kept dense: {entry.get('reason', 'the plan says so')}.",
            "seconds": each.seconds if each else None,
            "statistics": dict(each.solution.statistics) if each else {},
        }
    layers = dict(sorted(layers.items(), key=lambda item: item[1]["decomposer"] == DENSE))
    parameters = [surveyed.parameters, sum(parameter.numel() for parameter in after.parameters())]
    return {
        "norm": plan["norm"],
        "settings": plan["settings"],
        "model": {"macs": [surveyed.macs, surveyed.macs - saved], "parameters": parameters},
        "allocation": plan.get("allocation"),
        "layers": layers,
        "skipped": dict(surveyed.refusals),
        **({"accuracy": plan["accuracy"]} if "accuracy" in plan else {}),
    }


def with_measured(
    record: Mapping[str, Any], plan: Mapping[str, Any], unit: str, costs: Sequence[float]
) -> dict[str, Any]:
    """A record with what the whole network costs by measurement; what the plan predicted stands beside it.

    :param record: the record.
    :param plan: the plan that was followed.
    :param unit: the name of the cost.
    :param costs: of the original and the compressed network, or of the latter only, where the former is gone.
    """
    planned = plan["model"].get(unit)
    before = costs[0] if len(costs) == 2 else planned and planned[0]
    layers = {
        name: {**entry, f"predicted_{unit}": plan["layers"][name].get(unit)} for name, entry in record["layers"].items()
    }
    model = {**record["model"], unit: [before, costs[-1]], f"predicted_{unit}": planned}
    return {**record, "measured_on": plan.get("measured_on"), "model": model, "layers": layers}


def _sizes(shape: StageShape) -> dict[str, Any]:
    return {
        "out": shape.out_channels,
        "in": shape.in_channels,
        "kernel": list(shape.kernel_size),
        "groups": shape.groups,
    }


def _quality(allocation: Mapping[str, float] | None) -> str | None:
    """How good the plan was, in a sentence."""
    if allocation is None:
        return None
    loss, bound = allocation["predicted_loss"], allocation["lower_bound"]
    return f"Expected loss as planned: {loss:.4g}; no choice of these options under this budget is below {bound:.4g}."


def _measured(record: Mapping[str, Any]) -> str | None:
    """What the whole network measures, in a sentence."""
    unit = next((key.removeprefix("predicted_") for key in record["model"] if key.startswith("predicted_")), None)
    if unit is None:
        return None
    before, after = record["model"][unit]
    planned = record["model"][f"predicted_{unit}"]
    sentence = f"Measured {unit}: " + (f"{after:.4g}" if before is None else _change([before, after]))
    sentence += f"; as planned: {_change(planned)}" if planned else ""
    return f"{sentence} ({', '.join((record.get('measured_on') or {}).values())})."


def _caption(record: Mapping[str, Any]) -> str | None:
    sentences = [_quality(record.get("allocation")), _measured(record)]
    return "\n".join(sentence for sentence in sentences if sentence) or None


def _change(values: list[float]) -> str:
    before, after = values
    share = f" ({after / before:.0%})" if before else ""
    return f"{_short(before)} -> {_short(after)}{share}"


def _short(value: float) -> str:
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"
