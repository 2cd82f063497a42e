# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The one loop that every iterative solver runs in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from lowrank_hooks import Status

State = TypeVar("State")


class Algorithm(Protocol[State]):
    """The mathematics of an iterative solver; what depends on the data alone is computed before ``init``."""

    def init(self) -> State:
        """The starting point."""
        ...

    def step(self, state: State) -> State:
        """One sweep; must not change the state it is given."""
        ...

    def error(self, state: State) -> Tensor:
        """The squared error of a state, summed over the batch: a scalar."""
        ...


@dataclass(frozen=True)
class Outcome(Generic[State]):
    """Where the loop ended.

    :param state: the best state met.
    :param status: why it ended.
    :param errors: squared errors of the start and after every accepted step.
    """

    state: State
    status: Status
    errors: tuple[float, ...]


def iterate(algorithm: Algorithm[State], max_steps: int, rtol: float) -> Outcome[State]:
    """Step until the error settles.

    Stops when a step lowers the squared error by less than ``rtol`` of itself, when it would raise it (the step is
    then undone), or at the step limit.

    :param algorithm: the solver.
    :param max_steps: the step limit, 0 or more.
    :param rtol: relative decrease below which the error counts as settled.
    :return: the outcome; its errors never rise.
    """
    state = algorithm.init()
    errors = [float(algorithm.error(state))]
    for _ in range(max_steps):
        candidate = algorithm.step(state)
        error = float(algorithm.error(candidate))
        if not error <= errors[-1]:  # also true for a NaN
            settled = error <= errors[-1] * (1 + rtol)
            return Outcome(state, Status.CONVERGED if settled else Status.STAGNATED, tuple(errors))
        state = candidate
        errors.append(error)
        if errors[-2] - error <= rtol * errors[-2]:
            return Outcome(state, Status.CONVERGED, tuple(errors))
    return Outcome(state, Status.MAX_ITERATIONS, tuple(errors))
