# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The one loop that every iterative solver runs in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from lowrank_hooks import Status

State = TypeVar("State")


class Algorithm(Protocol[State]):
    """The mathematics of an iterative solver; what depends on the data alone is computed before ``init``.

    It knows neither when to stop nor what is done with a step that fails: that is :func:`iterate`'s.
    """

    def init(self) -> State:
        """The starting point."""
        ...

    def step(self, state: State) -> State:
        """One sweep; must not change the state it is given."""
        ...

    def error(self, state: State) -> Tensor:
        """The squared error of a state: of each group [G], or of all together, a scalar."""
        ...


@dataclass(frozen=True)
class Outcome(Generic[State]):
    """Where the loop ended.

    >>> outcome = Outcome("state", Status.CONVERGED, torch.tensor([[4.0, 2.0], [1.0, 2.0]]))
    >>> outcome.errors
    (6.0, 3.0)

    :param state: the best state met.
    :param status: why it ended.
    :param history: squared errors of the start and after every accepted step, [steps + 1, G] or [steps + 1, 1], on the
        CPU.
    """

    state: State
    status: Status
    history: Tensor

    @property
    def errors(self) -> tuple[float, ...]:
        """The squared errors summed over the groups."""
        return tuple(self.history.sum(dim=1).tolist())


def iterate(algorithm: Algorithm[State], max_steps: int, rtol: float) -> Outcome[State]:
    """Step until the error settles.

    Stops when a step lowers no squared error by more than ``rtol`` of itself, when it would raise one (the step is
    then undone), or at the step limit. So what is returned is never worse than the start, however a solver behaves.

    >>> class Halving:
    ...     def init(self):
    ...         return torch.tensor([1.0])
    ...     def step(self, state):
    ...         return (state / 2).clamp_min(0.2)
    ...     def error(self, state):
    ...         return state.square()
    >>> outcome = iterate(Halving(), max_steps=10, rtol=1e-3)
    >>> outcome.status.name, [round(error, 4) for error in outcome.errors]
    ('CONVERGED', [1.0, 0.25, 0.0625, 0.04, 0.04])

    :param algorithm: the solver.
    :param max_steps: the step limit, 0 or more.
    :param rtol: relative decrease below which an error counts as settled.
    :return: the outcome; its errors never rise.
    """
    state = algorithm.init()
    history, status = [algorithm.error(state).reshape(-1).cpu()], Status.MAX_ITERATIONS
    for _ in range(max_steps):
        candidate = algorithm.step(state)
        last, error = history[-1], algorithm.error(candidate).reshape(-1).cpu()
        if not bool((error <= last).all()):  # also true for a NaN
            status = Status.CONVERGED if bool((error <= last * (1 + rtol)).all()) else Status.STAGNATED
            break
        state = candidate
        history.append(error)
        if bool((last - error <= rtol * last).all()):
            status = Status.CONVERGED
            break
    return Outcome(state, status, torch.stack(history))
