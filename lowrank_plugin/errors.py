# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The errors users meet. Each is also the built-in exception that fits, so nobody needs to import these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


class LowRankError(Exception):
    """Base of all errors raised on purpose by this package."""


class ConfigurationError(LowRankError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class CalibrationError(LowRankError, ValueError):
    """The calibration data or the example input cannot be used with the model."""


class BudgetError(LowRankError, ValueError):
    """No choice of ranks meets the budget."""


class PlanError(LowRankError, ValueError):
    """A plan does not fit the model, or a layer of it cannot be solved."""


class StatisticsError(LowRankError, ValueError):
    """A file of statistics cannot be written or read, or statistics are of another network or cannot be merged."""


class PluginError(LowRankError, RuntimeError):
    """A plugin is broken, conflicts with another or was made for another version."""


class EvaluationError(LowRankError, RuntimeError):
    """A ``validation_fn`` failed; its own exception, if it raised one, is the cause.

    :param message: what happened.
    :param plan: the plan of the smallest good network found until then, or None.
    :param compressed: that network, or None.
    """

    def __init__(self, message: str, plan: dict[str, Any] | None = None, compressed: nn.Module | None = None) -> None:
        super().__init__(message)
        self.plan, self.compressed = plan, compressed
