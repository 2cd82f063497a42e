# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What is told of each problem where several are decomposed at once.

The sweeps of all run together until the last has settled, and each solution is to report its own: how it ended, how
many sweeps it took, its errors, and what was given up for a lower sensitivity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lowrank_hooks import Status
from lowrank_plugin.solvers.cp.diagnosis import component_energy, scaled_sensitivity
from lowrank_plugin.solvers.cp.sensitivity import Factors
from lowrank_plugin.solvers.cp.start import Prepared


@dataclass(frozen=True)
class Course:
    """The course of one problem's decomposition: least squares, then perhaps the trade for a lower sensitivity.

    >>> course = Course.of_least_squares([4.0, 1.0, 1.0], total=4.0, whitened=10)
    >>> course.status.name, course.errors, course.sweeps
    ('CONVERGED', [1.0, 0.5, 0.5], 12)
    >>> course = course.after_trading([8.0, 7.0])
    >>> course.status.name, course.errors, course.sweeps
    ('MAX_ITERATIONS', [1.0, 0.5, 0.5], 13)

    :param status: how the last part of it ended.
    :param errors: relative errors of least squares in the problem's norm, the start first.
    :param sweeps: how many there were in all.
    :param before: statistics of the best least squares solution; None where nothing was traded for sensitivity.
    """

    status: Status
    errors: list[float]
    sweeps: int
    before: dict[str, float] | None = None

    @classmethod
    def of_least_squares(cls, history: Sequence[float], total: float, whitened: int) -> Course:
        """The course up to the end of least squares.

        :param history: squared errors of the start and after each sweep.
        :param total: the squared norm of the kernel.
        :param whitened: sweeps that were made on the whitened kernel before.
        """
        errors = [math.sqrt(error / total) if total > 0 else 0.0 for error in history]
        return cls(_status(history), errors, whitened + len(history) - 1)

    def before_trading(self, best: Factors, prepared: Prepared, index: int) -> Course:
        """The same, with the statistics of what is about to be traded.

        :param best: the least squares solution of all problems.
        :param prepared: the problems.
        :param index: the place of this one among them.
        """
        part = prepared.part(index)
        factors = Factors(*(factor[part] for factor in best))
        before = {
            "sensitivity_before": scaled_sensitivity(factors, prepared.scales[index]),
            "component_energy_before": component_energy(factors, prepared.kernel[part]),
            "best_error": self.errors[-1],
        }
        return replace(self, before=before)

    def after_trading(self, sensitivities: Sequence[float]) -> Course:
        """The same, once error was traded for sensitivity.

        :param sensitivities: before the trade and after each of its sweeps.
        """
        return replace(self, status=_status(sensitivities), sweeps=self.sweeps + len(sensitivities) - 1)


def histories(prepared: Prepared, history: Tensor) -> list[list[float]]:
    """What an iteration lowered, for each problem; of the sweeps in which nothing changed any more only the first.

    >>> import torch
    >>> from lowrank_hooks import Problem
    >>> from lowrank_plugin.solvers.cp.start import prepare
    >>> two = prepare([Problem(torch.ones(1, 2, 2, 3))] * 2)
    >>> histories(two, torch.tensor([[9.0, 9.0], [5.0, 4.0], [5.0, 3.0], [5.0, 2.0]]))
    [[9.0, 5.0, 5.0], [9.0, 4.0, 3.0, 2.0]]

    :param prepared: the problems.
    :param history: of all groups together, [sweeps + 1, G].
    :return: sums over the groups of each problem.
    """
    histories: list[list[float]] = prepared.of_each(history).mT.tolist()
    for each in histories:
        while len(each) > 2 and each[-1] == each[-3]:
            each.pop()
    return histories


def _status(history: Sequence[float]) -> Status:
    return Status.CONVERGED if len(history) > 1 and history[-1] == history[-2] else Status.MAX_ITERATIONS
