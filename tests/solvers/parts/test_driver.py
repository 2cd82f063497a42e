# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The loop never returns anything worse than the start, and says why it ended."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from lowrank_hooks import Status
from lowrank_plugin.solvers.parts.driver import iterate


@dataclass
class Script:
    """A solver whose states are numbers and whose squared errors are read from a list, a row for each state."""

    errors: list[list[float]]

    def init(self) -> int:
        return 0

    def step(self, state: int) -> int:
        return state + 1

    def error(self, state: int) -> torch.Tensor:
        return torch.tensor(self.errors[state], dtype=torch.float64)


@pytest.mark.parametrize(
    ("errors", "kept", "status"),
    [
        ([[4.0], [2.0], [1.0], [0.5]], 3, Status.MAX_ITERATIONS),
        ([[4.0], [2.0], [1.999], [0.5]], 2, Status.CONVERGED),
        ([[4.0], [2.0], [2.001], [0.5]], 1, Status.CONVERGED),
        ([[4.0], [2.0], [3.0], [0.5]], 1, Status.STAGNATED),
        ([[4.0], [float("nan")], [1.0], [0.5]], 0, Status.STAGNATED),
        ([[4.0, 4.0], [4.0, 2.0], [4.0, 1.0], [4.0, 0.5]], 3, Status.MAX_ITERATIONS),
        ([[4.0, 4.0], [2.0, 5.0], [1.0, 1.0], [1.0, 1.0]], 0, Status.STAGNATED),
    ],
    ids=["falls", "settles", "rises-by-rounding", "rises", "nan", "one-group-done", "one-group-rises"],
)
def test_how_it_ends(errors: list[list[float]], kept: int, status: Status) -> None:
    outcome = iterate(Script(errors), 3, 1e-2)
    assert (outcome.state, outcome.status) == (kept, status)
    assert outcome.history.tolist() == errors[: kept + 1]
    assert outcome.errors == tuple(sum(row) for row in errors[: kept + 1])


def test_no_steps_are_allowed() -> None:
    outcome = iterate(Script([[4.0]]), 0, 1e-2)
    assert (outcome.state, outcome.status, outcome.errors) == (0, Status.MAX_ITERATIONS, (4.0,))
