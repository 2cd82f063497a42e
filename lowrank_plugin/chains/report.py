# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The record of a compressed model in readable form."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from lowrank_plugin.chains.record import Measured, Record, record_of
from lowrank_plugin.outputs.losses import NATS
from lowrank_plugin.ranks.plan import Change
from lowrank_plugin.ranks.proposals import DENSE
from lowrank_plugin.support.validation import Json

_UNITS = {"latency": "latency in milliseconds"}
"""What is measured, where the name of the cost does not say its unit."""


@dataclass(frozen=True)
class Report:
    """The record in readable form.

    :param record: the record.
    """

    record: Record

    def to_dict(self) -> Json:
        """The record as JSON: ``model`` with the MACs for one sample and the parameters before and after, ``layers``
        with what became of each, ``skipped`` with the others; ``earlier``, likewise, where the model that was given had
        been compressed before."""
        return self.record.to_json()

    def to_str(self) -> str:
        """A table with a row a layer, the compressed ones first, and the totals; one for each compression."""
        return "\n".join(_table(each) for each in self.record.rounds)

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
    return Report(record_of(compressed))


def _quality(allocation: Mapping[str, float], unit: str | None) -> str:
    """How good the plan was, in a sentence."""
    loss, bound = f"{allocation['predicted_loss']:.4g}", f"{allocation['lower_bound']:.4g}"
    if unit:
        loss = f"{loss} {unit}" if unit == NATS else f"{loss} ({unit})"
    return f"Expected loss as planned: {loss}; no choice of these options under this budget is below {bound}."


def _measured(measured: Measured) -> str:
    """What the whole network measures, in a sentence."""
    after = measured.after
    told = f"{after:.4g}" if measured.before is None else _change(Change(measured.before, after))
    planned = f"; as planned: {_change(measured.planned)}" if measured.planned else ""
    where = f" ({', '.join(measured.facts.values())})" if measured.facts else ""
    return f"Measured {_UNITS.get(measured.unit, measured.unit)}: {told}{planned}{where}."


def _caption(record: Record) -> str | None:
    quality = None if record.allocation is None else _quality(record.allocation, record.unit)
    measured = None if record.measured is None else _measured(record.measured)
    return "\n".join(sentence for sentence in (quality, measured) if sentence) or None


def _change(change: Change) -> str:
    share = f" ({change.after / change.before:.0%})" if change.before else ""
    return f"{_short(change.before)} -> {_short(change.after)}{share}"


def _short(value: float) -> str:
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def _table(record: Record) -> str:
    """The table of one round."""
    table = Table(box=box.ASCII2, title="Low-rank decomposition", caption=_caption(record))
    for column in ("Layer", "Decomposer", "Rank", "MACs per sample", "Parameters", "Rel. error", "Status"):
        table.add_column(column, justify="left" if column in ("Layer", "Decomposer", "Status") else "right")
    for name, layer in record.layers.items():
        table.add_row(
            name,
            layer.decomposer,
            "x".join(str(rank) for rank in layer.rank),
            _change(layer.costs["macs"]),
            _change(layer.costs["parameters"]),
            "" if layer.error is None else f"{layer.error:.4f}",
            layer.status,
        )
    for name, reason in record.skipped.items():
        table.add_row(name, DENSE, "", "", "", "", f"Left alone: {reason}.")
    table.add_section()
    costs = record.costs
    table.add_row("whole model", "", "", _change(costs["macs"]), _change(costs["parameters"]), "", "")
    written = io.StringIO()
    Console(file=written, width=200, color_system=None).print(table)
    return written.getvalue()
