# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Run the tests of the hosts with several versions of NNCF, each in an environment of its own.

What passed goes to ``tests/support-matrix.json``, and from there into the README. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
MATRIX = Path(__file__).with_name("support-matrix.json")
BEGIN, END = "<!-- support matrix: begin -->\n", "<!-- support matrix: end -->\n"
ENVIRONMENTS = ROOT / ".venv-matrix"


@dataclass(frozen=True)
class Row:
    """One combination of versions."""

    nncf: str
    torch: str
    tests: str
    extras: str

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        return ENVIRONMENTS / f"nncf-{self.nncf}" / "bin" / "python"


ROWS = (
    Row("3.4.0", "2.14.1", "tests/nncf", "nncf,tests,export"),
    Row("3.0.0", "2.5.1", "tests/nncf", "nncf,tests,export"),
    Row("2.19.0", "2.13.0", "tests/nncf2", "nncf,tests"),
    Row("2.18.0", "2.13.0", "tests/nncf2", "nncf,tests"),
    Row("2.17.0", "2.13.0", "tests/nncf2", "nncf,tests"),
    Row("2.16.0", "2.5.1", "tests/nncf2", "nncf,tests"),
    Row("2.14.1", "2.5.1", "tests/nncf2", "nncf,tests"),
)
"""The newest and the oldest NNCF 3 and 2 that are supported, and some between; torch 2.5 is the oldest for NNCF 3.0."""


_VERSIONS = """
import platform
from importlib.metadata import version
print(platform.python_version(), version("nncf"), version("torch"))
"""


def set_up(row: Row) -> None:
    """Make the environment of a row, unless it is there."""
    ready = ENVIRONMENTS / f"nncf-{row.nncf}.ready"
    if ready.exists():
        return
    if not row.python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(row.python.parents[1])], check=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    wanted = [f".[{row.extras}]", f"nncf=={row.nncf}", f"torch=={row.torch}"]
    subprocess.run([str(row.python), *install, "--editable", *wanted], cwd=ROOT, check=True)
    ready.touch()


def run(row: Row) -> dict[str, Any]:
    """Run the tests of a row; returns the versions, how many passed, and the names of those that did not."""
    shown = subprocess.run([str(row.python), "-c", _VERSIONS], check=True, capture_output=True, text=True).stdout
    python, nncf, torch = shown.split()
    with tempfile.TemporaryDirectory() as folder:
        outcome = Path(folder) / "outcome.xml"
        command = [str(row.python), "-m", "pytest", "--quiet", f"--junitxml={outcome}", row.tests]
        # this tree, whatever is installed
        paths = os.pathsep.join(str(ROOT / part) for part in ("", "hooks", "integration"))
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, check=False)
        cases = list(ElementTree.parse(outcome).iter("testcase"))
    failed = [f"{case.get('classname')}::{case.get('name')}" for case in cases if _has(case, "failure", "error")]
    skipped = sum(_has(case, "skipped") for case in cases)
    return {
        "nncf": nncf,
        "torch": torch.partition("+")[0],
        "python": python,
        "tests": row.tests,
        "passed": len(cases) - skipped - len(failed),
        "skipped": skipped,
        "failed": failed,
    }


def table(outcomes: Iterable[Mapping[str, Any]]) -> str:
    """The matrix as the README shows it."""
    lines = ["| NNCF | PyTorch | Python | tests | passed | skipped | failed |", "|---|---|---|---|---|---|---|"]
    for each in outcomes:
        cells = [each["nncf"], each["torch"], each["python"], f"`{each['tests']}`", each["passed"], each["skipped"]]
        lines.append("| " + " | ".join(str(cell) for cell in [*cells, len(each["failed"])]) + " |")
    return "\n".join(lines) + "\n"


def write_readme() -> None:
    """Put the matrix into the README."""
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    _, after = rest.split(END)
    readme.write_text(before + BEGIN + table(json.loads(MATRIX.read_text())) + END + after)


def main() -> int:
    """Run all rows, or those of the versions named; the status is 1 where a test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="*", help="versions of NNCF; all by default", metavar="version")
    versions = parser.parse_args().versions
    outcomes = {each["nncf"]: each for each in json.loads(MATRIX.read_text())} if MATRIX.exists() else {}
    for row in ROWS:
        if not versions or row.nncf in versions:
            set_up(row)
            outcomes[row.nncf] = run(row)
            ordered = [outcomes[each.nncf] for each in ROWS if each.nncf in outcomes]
            MATRIX.write_text(json.dumps(ordered, indent=2) + "\n")
    write_readme()
    return int(any(outcome["failed"] for outcome in outcomes.values()))


def _has(case: ElementTree.Element, *tags: str) -> bool:
    return any(case.find(tag) is not None for tag in tags)


if __name__ == "__main__":
    sys.exit(main())
