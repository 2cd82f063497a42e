# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""How each of the problems that are decomposed together fared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lowrank_hooks import Status
from lowrank_plugin.solvers.cp.diagnosis import component_energy, scaled_sensitivity
from lowrank_plugin.solvers.cp.sensitivity import Factors
from lowrank_plugin.solvers.cp.start import Prepared
from lowrank_plugin.solvers.parts.driver import Outcome


@dataclass(frozen=True)
class Course:
    """What happened to one problem.

    :param status: how it ended.
    :param errors: relative errors of least squares in the problem's norm, the start first.
    :param sweeps: how many there were in all.
    :param before: statistics of the best least squares solution; None where nothing was traded for sensitivity.
    """

    status: Status
    errors: list[float]
    sweeps: int
    before: dict[str, float] | None = None

    @classmethod
    def of(cls, history: Sequence[float], total: float, sweeps: int) -> Course:
        """Least squares.

        :param history: squared errors.
        :param total: the squared norm of the kernel.
        :param sweeps: those that were made on the whitened kernel before.
        """
        errors = [math.sqrt(error / total) if total > 0 else 0.0 for error in history]
        return cls(_status(history), errors, sweeps + len(history) - 1)

    def trading(self, best: Factors, prepared: Prepared, index: int) -> Course:
        """The same, with what is to be traded.

        :param best: the least squares solution of all problems.
        :param prepared: the problems.
        :param index: the place of this one.
        """
        part = prepared.part(index)
        factors = Factors(*(factor[part] for factor in best))
        before = {
            "sensitivity_before": scaled_sensitivity(factors, prepared.scales[index]),
            "component_energy_before": component_energy(factors, prepared.kernel[part]),
            "best_error": self.errors[-1],
        }
        return replace(self, before=before)

    def ending(self, sensitivities: Sequence[float]) -> Course:
        """The same after the trade.

        :param sensitivities: their history.
        """
        return replace(self, status=_status(sensitivities), sweeps=self.sweeps + len(sensitivities) - 1)


def histories(prepared: Prepared, outcome: Outcome[Any]) -> list[list[float]]:
    """What an iteration lowered, for each problem; of the sweeps in which nothing changed any more only the first.

    :param prepared: the problems.
    :param outcome: of all together.
    """
    histories = prepared.of_each(outcome.history).mT.tolist()
    for history in histories:
        while len(history) > 2 and history[-1] == history[-3]:
            history.pop()
    return histories


def _status(history: Sequence[float]) -> Status:
    return Status.CONVERGED if len(history) > 1 and history[-1] == history[-2] else Status.MAX_ITERATIONS
