# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The two iterations of a stable CP decomposition: least squares, then least sensitivity under a bound on the error.

[1] Phan et al., "Stable Low-Rank Tensor Decomposition for Compression of Convolutional Neural Network", ECCV 2020,
arXiv:2008.05441.
[2] Mitchell, Ye and De Sterck, "Nesterov acceleration of alternating least squares for canonical tensor
decomposition", Numer. Linear Algebra Appl. 27(4), 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_plugin.solvers.cp.blocks import Objective, Sweep
from lowrank_plugin.solvers.cp.sensitivity import Factors, sensitivity
from lowrank_plugin.solvers.parts.driver import Outcome, iterate

_FEASIBLE = 1e-6
"""Share of the bound by which rounding may exceed it."""


@dataclass(frozen=True)
class SweepState:
    """A point of :class:`AcceleratedSweeps`, for all groups.

    :param factors: the best point so far.
    :param previous: the one before it, for the momentum.
    :param error: squared error, [G].
    :param merit: what must not rise: the error, or under a bound the sensitivity, [G].
    :param multiplier: of the bound, [G].
    :param age: sweeps since the momentum was restarted, [G].
    :param quiet: sweeps in a row without noticeable progress, [G]; at ``patience`` the group is left alone.
    """

    factors: Factors
    previous: Factors
    error: Tensor
    merit: Tensor
    multiplier: Tensor
    age: Tensor
    quiet: Tensor


@dataclass(frozen=True)
class AcceleratedSweeps:
    r"""Sweeps with Nesterov momentum and restarts ([2]); each group has a momentum of its own.

    Without bound it minimises the squared error. With one it minimises the sensitivity subject to it, the
    error-preserving correction of [1]: the outputs take the exact solution of their bounded problem, inputs and taps
    the ridge solution with the multiplier just found, which is the same for all factors at the optimum.

    Differences from [1]: corrections and least squares are one sweep instead of alternating phases; the bound lies
    above the best error, since at a converged point there is nothing left to trade; momentum; every point is rescaled
    to least sensitivity, which [1] leaves to the end.

    :param objective: the squared error.
    :param start: where to begin; under a bound a point that keeps it.
    :param bound: bound on the squared error, [G], float64; None for least squares.
    :param rtol: relative decrease of the merit in one sweep that counts as progress.
    :param patience: sweeps without progress after which a group is done.
    """

    objective: Objective
    start: Factors
    bound: Tensor | None
    rtol: float
    patience: int = 3

    def init(self) -> SweepState:
        """See :meth:`lowrank_plugin.solvers.parts.driver.Algorithm.init`."""
        first = self.objective.refit(self.start, self.bound)
        none = torch.zeros_like(first.error)
        merit = self._merit(first, none)
        return SweepState(first.factors, first.factors, first.error, merit, first.multiplier, none, none)

    def step(self, state: SweepState) -> SweepState:
        """See :meth:`lowrank_plugin.solvers.parts.driver.Algorithm.step`."""
        working = state.quiet < self.patience
        if not bool(working.any()):
            return state
        momentum = (state.age / (state.age + 3))[:, None, None]
        ahead = Factors(*(x + momentum * (x - y) for x, y in zip(state.factors, state.previous, strict=True)))
        trial = self.objective.sweep(ahead, state.multiplier, self.bound)
        del ahead
        merit = self._merit(trial, state.error)
        risen = working & ~(merit <= state.merit)
        if bool((risen & (state.age > 0)).any()):
            plain = self.objective.sweep(state.factors, state.multiplier, self.bound)
            trial = Sweep(
                Factors(*(_select(risen, a, b) for a, b in zip(plain.factors, trial.factors, strict=True))),
                torch.where(risen, plain.error, trial.error),
                torch.where(risen, plain.multiplier, trial.multiplier),
            )
            merit = self._merit(trial, state.error)
        accepted = working & (merit <= state.merit)
        progress = accepted & (state.merit - merit > self.rtol * state.merit)
        return self._advance(state, trial, merit, accepted, risen, progress)

    def _advance(
        self, state: SweepState, trial: Sweep, merit: Tensor, accepted: Tensor, risen: Tensor, progress: Tensor
    ) -> SweepState:
        pairs = zip(trial.factors, state.factors, strict=True)
        return SweepState(
            factors=Factors(*(_select(accepted, new, old) for new, old in pairs)),
            previous=state.factors,
            error=torch.where(accepted, trial.error, state.error),
            merit=torch.where(accepted, merit, state.merit),
            multiplier=torch.where(accepted, trial.multiplier, state.multiplier),
            age=torch.where(accepted & ~risen, state.age + 1, torch.zeros_like(state.age)),
            quiet=torch.where(progress, torch.zeros_like(state.quiet), state.quiet + 1),
        )

    def error(self, state: SweepState) -> Tensor:
        """See :meth:`lowrank_plugin.solvers.parts.driver.Algorithm.error`."""
        return state.merit

    def _merit(self, sweep: Sweep, error: Tensor) -> Tensor:
        if self.bound is None:
            return sweep.error
        # A point that breaks the bound is taken only where the last one broke it further.
        feasible = sweep.error <= torch.maximum(self.bound * (1 + _FEASIBLE), error)
        return torch.where(feasible, sensitivity(sweep.factors), torch.full_like(error, torch.inf))


def _select(mask: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.where(mask[:, None, None], first, second)


def least_squares(objective: Objective, start: Factors, sweeps: int, rtol: float) -> Outcome[SweepState]:
    """Alternating least squares with momentum.

    >>> kernel = torch.ones(1, 3, 2, 4, dtype=torch.float64)
    >>> objective = Objective(kernel, kernel.square().sum().reshape(1))
    >>> begin = Factors(*(torch.arange(1.0, n + 1).double().reshape(1, n, 1) for n in (3, 2, 4)))
    >>> round(float(least_squares(objective, begin, 10, 1e-4).state.error), 6)
    0.0

    :param objective: the squared error.
    :param start: where to begin.
    :param sweeps: the most sweeps.
    :param rtol: relative decrease of the squared error in one sweep that counts as progress.
    :return: the outcome; its errors are squared errors and never rise.
    """
    return iterate(AcceleratedSweeps(objective, start, None, rtol), sweeps, 0.0)


def least_sensitive(
    objective: Objective, start: Factors, bound: Tensor, sweeps: int, rtol: float
) -> Outcome[SweepState]:
    """Minimise the sensitivity under a bound on the squared error.

    >>> kernel = torch.ones(1, 3, 2, 4, dtype=torch.float64)
    >>> objective = Objective(kernel, kernel.square().sum().reshape(1))
    >>> begin = Factors(*(torch.arange(1.0, n + 1).double().reshape(1, n, 1) for n in (3, 2, 4)))
    >>> bound = torch.tensor([1.0], dtype=torch.float64)
    >>> outcome = least_sensitive(objective, begin, bound, 20, 1e-6)
    >>> round(float(outcome.state.error), 3), bool(outcome.history[-1] <= outcome.history[0])
    (1.0, True)

    :param objective: the squared error.
    :param start: a point whose inputs and taps allow the bound to be kept.
    :param bound: [G], float64.
    :param sweeps: the most sweeps.
    :param rtol: relative decrease of the sensitivity in one sweep that counts as progress.
    :return: the outcome; its errors are sensitivities and never rise.
    """
    return iterate(AcceleratedSweeps(objective, start, bound, rtol), sweeps, 0.0)


def stabilise(
    objective: Objective, best: Factors, error: Tensor, slack: float, sweeps: int, rtol: float
) -> Outcome[SweepState]:
    r"""Trade a share of the residual for the least sensitivity.

    >>> generator = torch.Generator().manual_seed(0)
    >>> kernel = torch.randn(1, 4, 4, 4, generator=generator, dtype=torch.float64)
    >>> objective = Objective(kernel, kernel.square().sum().reshape(1))
    >>> draw = [torch.randn(1, 4, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    >>> best = least_squares(objective, Factors(*draw), 50, 1e-4).state
    >>> stable = stabilise(objective, best.factors, best.error, 0.05, 50, 1e-4).state
    >>> bool(sensitivity(stable.factors) < sensitivity(best.factors))
    True
    >>> round(float((stable.error / best.error).sqrt()), 2)
    1.05

    :param objective: the squared error.
    :param best: a decomposition of small error.
    :param error: its squared error, [G].
    :param slack: how far the residual may rise, relative to that of ``best``.
    :param sweeps: the most sweeps.
    :param rtol: relative decrease of the sensitivity in one sweep that counts as progress.
    :return: the outcome.
    """
    # An error below rounding is no bound to keep: the bound is at least the noise of computing it.
    noise = 8 * torch.finfo(objective.cross.dtype).eps * objective.energy
    return least_sensitive(objective, best, (1 + slack) ** 2 * torch.maximum(error, noise), sweeps, rtol)
