# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Measurements of several versions of one network: as a table, a figure and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """What was measured of one version.

    :param name: of the version.
    :param parameters: numbers it holds.
    :param macs: multiply-accumulates for one sample.
    :param bytes: of its OpenVINO files.
    :param latency: median milliseconds for one sample.
    :param accuracy: per cent of the validation samples; None if it was not measured.
    :param agreement: per cent of them where it agrees with the first version; None if it was not measured.
    :param kl: KL divergence of its outputs from those of the first version, in nats; None if it was not measured.
    """

    name: str
    parameters: int
    macs: int
    bytes: int
    latency: float
    accuracy: float | None = None
    agreement: float | None = None
    kl: float | None = None


def show_cells(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> None:
    """Print a table of any texts.

    :param title: above it.
    :param header: of the columns.
    :param rows: their cells.
    :param names: how many of the first columns hold names, which are aligned to the left.
    """
    table = Table(title=title, box=box.SIMPLE)
    for index, column in enumerate(header):
        table.add_column(column, justify="left" if index < names else "right")
    for row in rows:
        table.add_row(*row)
    # Output that is not a terminal has no width of its own; the table must not be folded there.
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)


def show(rows: Sequence[Row], title: str) -> None:
    """Print a table; speed-ups are relative to the first row."""
    cells = (
        (
            row.name,
            f"{row.parameters / 1e6:.2f} M",
            f"{row.macs / 1e6:.1f} M",
            f"{row.bytes / 1e6:.2f} MB",
            _text(row.accuracy, ".2f", " %"),
            _text(row.agreement, ".1f", " %"),
            _text(row.kl, ".3f"),
            f"{row.latency:.2f} ms",
            f"{rows[0].latency / row.latency:.2f} x",
        )
        for row in rows
    )
    header = ("", "parameters", "MACs", "file", "top-1", "agreement", "KL", "latency", "speed-up")
    show_cells(title, header, cells)


def _text(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def write_json(rows: Sequence[Row], path: Path, **facts: object) -> None:
    """Write the rows, and whatever else describes the measurement.

    :param rows: the measurements.
    :param path: of the file.
    :param facts: JSON values.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    versions = [{**asdict(row), "speed_up": rows[0].latency / row.latency} for row in rows]
    path.write_text(json.dumps({**facts, "versions": versions}, indent=2) + "\n")


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw the rows as bars.

    :param rows: the measurements, each with an accuracy.
    :param title: above the figure.
    :param path: of the .png file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    figure.suptitle(title)
    panels = {
        "MACs, millions": [row.macs / 1e6 for row in rows],
        "file, MB": [row.bytes / 1e6 for row in rows],
        "latency, ms": [row.latency for row in rows],
        "top-1, %": [row.accuracy or 0.0 for row in rows],
    }
    names, colours = [row.name for row in rows], ["#9aa5b1", "#5b8db8", "#e0a458", "#0068b5"]
    for axes, (label, values) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        bars = axes.bar(names, values, color=colours[: len(rows)])
        axes.bar_label(bars, fmt="%.3g", fontsize=8)
        axes.set_title(label, fontsize=10)
        axes.tick_params(axis="x", labelsize=8, rotation=20)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.15)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
