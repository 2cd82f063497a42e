# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The README's table of where compressed networks run, from what the tests hold true; run it to write it again."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests")]

from export.networks import VERSIONS  # noqa: E402
from export.runtimes import FAILURES, RUNTIMES  # noqa: E402

README = ROOT / "README.md"
BEGIN, END = "<!-- export -->\n", "<!-- end of export -->\n"


def table() -> str:
    """Runtimes down, versions across, and a note for each failure."""
    notes = list(dict.fromkeys(failure.reason for failure in FAILURES.values()))
    lines = [f"| | {' | '.join(VERSIONS)} |", "|---" * (len(VERSIONS) + 1) + "|"]
    for name in RUNTIMES:
        lines.append(f"| {name} | {' | '.join(_cell(name, version, notes) for version in VERSIONS)} |")
    return "\n".join([*lines, "", *(f"{number}. {note}." for number, note in enumerate(notes, start=1))]) + "\n"


def _cell(name: str, version: str, notes: list[str]) -> str:
    failure = FAILURES.get((version, name))
    if failure is None:
        return "equal" if version in RUNTIMES[name].versions else "-"
    everywhere = set(RUNTIMES[name].geometries) <= set(failure.geometries)
    return f"{'no' if everywhere else 'partly'} ({notes.index(failure.reason) + 1})"


if __name__ == "__main__":
    marked = re.compile(f"(?<={re.escape(BEGIN)}).*(?={re.escape(END)})", re.DOTALL)
    README.write_text(marked.sub(lambda _: "\n" + table() + "\n", README.read_text()))
