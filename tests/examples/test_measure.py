# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What the benchmarks report, from known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks import latency
from common import measure


def test_fidelity() -> None:
    wanted = np.log([[0.5, 0.5], [0.9, 0.1]]) + 3
    found = np.log([[0.75, 0.25], [0.1, 0.9]])
    kl = (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25) + 0.8 * math.log(9)) / 2
    fidelity = measure.fidelity(found, wanted, [0, 0])
    assert (fidelity.top1, fidelity.agreement) == (50, 50)
    assert fidelity.kl == pytest.approx(kl)


def test_fidelity_to_itself() -> None:
    outputs = np.array([[1.0, 2.0], [4.0, 3.0]])
    assert measure.fidelity(outputs, outputs, [1, 0]) == measure.Fidelity(100, 100, 0)


def test_speed_ups() -> None:
    ratios = latency.speed_ups({"original": 9.0, "int8": 4.5, "lowrank": 5.0, "lowrank + int8": 3.0})
    assert list(ratios.values()) == [3.0, 1.5, 1.8]
