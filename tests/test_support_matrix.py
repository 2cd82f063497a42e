# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The README shows the support matrix that was run."""

from __future__ import annotations

import json
from pathlib import Path

from support_matrix import BEGIN, END, MATRIX, ROWS, table

OUTCOMES = json.loads(MATRIX.read_text())


def test_readme_shows_what_was_run():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert BEGIN + table(OUTCOMES) + END in readme


def test_every_row_was_run_and_passed():
    assert [each["nncf"] for each in OUTCOMES] == [row.nncf for row in ROWS]
    assert all(each["passed"] and not each["failed"] for each in OUTCOMES)
