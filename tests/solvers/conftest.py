# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Fixtures of the solver tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# The table of problems is a plain module beside the tests: ``from problems import CASES``.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def cuda() -> torch.device:
    """A CUDA device; skips where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: compares its results with the CPU's")
    return torch.device("cuda")
