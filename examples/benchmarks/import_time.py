# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""How long imports take beyond torch's own, each in fresh processes; prints a table and writes JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from common.table import show_cells

STATEMENTS = {
    "lowrank_hooks": "import lowrank_hooks",
    "lowrank_hooks.testing": "import lowrank_hooks.testing",
    "lowrank_plugin": "import lowrank_plugin",
    "all plugins loaded": "from lowrank_plugin.plugins import manager; manager()",
    "lowrank_nncf": "import lowrank_nncf",
}
TIMED = """
import sys, time
start = time.perf_counter()
import torch
between = time.perf_counter()
{statement}
end = time.perf_counter()
print(1000 * (between - start), 1000 * (end - between), "nncf" in sys.modules, "pytest" in sys.modules)
"""


def measured(statement: str, repeats: int) -> dict[str, object]:
    """Time a statement after the import of torch.

    :param statement: the statement.
    :param repeats: processes that run it.
    :return: medians in milliseconds, and whether NNCF and pytest were imported.
    """
    runs = []
    for _ in range(repeats):
        command = [sys.executable, "-c", TIMED.format(statement=statement)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        runs.append(printed.split()[-4:])
    return {
        "torch_ms": statistics.median(float(run[0]) for run in runs),
        "beyond_torch_ms": statistics.median(float(run[1]) for run in runs),
        "least_ms": min(float(run[1]) for run in runs),
        "imports_nncf": runs[0][2] == "True",
        "imports_pytest": runs[0][3] == "True",
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="processes for each statement")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    rows = {name: measured(statement, arguments.repeats) for name, statement in STATEMENTS.items()}
    lines = []
    for name, row in rows.items():
        numbers = (f"{row[key]:.0f}" for key in ("beyond_torch_ms", "least_ms", "torch_ms"))
        lines.append([name, *numbers, *("yes" if row[key] else "no" for key in ("imports_nncf", "imports_pytest"))])
    header = ("", "median", "least", "torch itself", "imports NNCF", "imports pytest")
    show_cells("Import times beyond torch, ms", header, lines)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"repeats": arguments.repeats, "statements": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
