# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The rows as a page for readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_INTRODUCTION = """\
# Networks that were compressed, and what was checked of each

Written by `make coverage`; the numbers are in [coverage.json](coverage.json). All networks have random weights (batch
norms saw one batch) and small inputs, so that nothing here is about accuracy: it is about what holds for any weights.

| column | right where |
|---|---|
| layers | says how many became chains, and how many did not |
| MACs | no more remain than asked for, and as many as told are counted by torch's own counter, before and after |
| parameters | as many as told are counted, before and after |
| full rank | factorised without loss, the outputs are the same within 0.001, relative |
| restored | built from the state, the outputs are the same bit for bit |
| untouched | weights, modules, flags and hooks of the user's model are as they were |
| OpenVINO | the exported network's outputs are the same within 0.001, relative |

A dash stands where a check does not apply; the notes say why. Where wide layers were left out of a run for their time
(`--widest`), the notes say how many, and they are in none of the other numbers.
"""


def markdown(rows: Sequence[Mapping[str, Any]], planned: Sequence[tuple[str, str]]) -> str:
    """The page.

    :param rows: as JSON values.
    :param planned: family and name of every network of the table.
    """
    verdicts = Counter(row["verdict"] for row in rows)
    parts = [
        _INTRODUCTION,
        f"**{len(rows)} of {len(planned)} planned rows were run: {verdicts['right']} are right, "
        f"{verdicts['wrong']} are wrong, and in {verdicts['left alone']} nothing was compressed.** {_when(rows)}\n",
    ]
    for family in dict.fromkeys(family for family, _ in planned):
        of_family = [row for row in rows if row["family"] == family]
        names = [name for of, name in planned if of == family]
        parts.append(f"## {family[0].upper()}{family[1:]}: {len(of_family)} of {len(names)} rows\n")
        if of_family:
            parts += [_rows(of_family), _reasons(of_family)]
        done = {row["name"] for row in of_family}
        if left := [name for name in names if name not in done]:
            parts.append(f"Not run yet: {', '.join(left)}.\n")
    return "\n".join(parts)


def _when(rows: Sequence[Mapping[str, Any]]) -> str:
    dates = sorted({row["date"] for row in rows})
    versions: dict[str, set[str]] = {}
    for row in rows:
        for name, version in row["versions"].items():
            versions.setdefault(name, set()).add(version)
    told = ", ".join(f"{name} {' and '.join(sorted(each))}" for name, each in versions.items())
    return f"Run on {' and '.join(dates)} with {told}." if rows else ""


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ("network", "", "layers", "MACs", "parameters", "full rank", "restored", "untouched", "OpenVINO", "notes")
    lines = [head, ("---",) * len(head), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    left = sum(row["left"].values())
    remarks = [f"**{each}**" for each in row["wrong"]] + row["notes"]
    return (
        row["name"],
        f"**{row['verdict']}**" if row["wrong"] else row["verdict"],
        "-" if row["layers"] is None else f"{row['layers']} of {row['layers'] + left}",
        _share(row["macs"]),
        _share(row["parameters"]),
        _number(row["full_rank"]),
        _yes(row["restored"]),
        _yes(row["untouched"]),
        _number(row["exported"]),
        "; ".join(remarks).replace("|", "\\|").replace("\n", " "),
    )


def _share(numbers: Mapping[str, float]) -> str:
    if "after" not in numbers:
        return "-"
    asked = f", {numbers['asked']:.0%} asked" if "asked" in numbers else ""
    return f"{numbers['after'] / numbers['before']:.1%}{asked}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "**no**"


def _reasons(rows: Sequence[Mapping[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for row in rows:
        for reason, count in row["left"].items():
            counts[reason] = counts.get(reason, 0) + count
    told = [f"- {count}: {reason}" for reason, count in sorted(counts.items(), key=lambda each: -each[1])]
    return "Layers left as they were, by reason:\n\n" + "\n".join(told) + "\n"
