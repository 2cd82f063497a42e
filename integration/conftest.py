# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What the examples in docstrings share."""

from __future__ import annotations

import os

# NNCF reads it on import
os.environ.setdefault("NNCF_CI", "1")

import pytest
import rich


@pytest.fixture(autouse=True)
def no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples show what functions return, without NNCF's progress bars."""
    monkeypatch.setattr(rich.get_console(), "quiet", True)
