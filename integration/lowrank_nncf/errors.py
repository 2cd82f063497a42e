# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The errors of the host. Each is at once the core's error and NNCF's, so either may be caught."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import nncf

from lowrank_plugin import errors


class ConfigurationError(errors.ConfigurationError, nncf.ValidationError):
    """The config is malformed, or asks for what cannot be done."""


class CalibrationError(errors.CalibrationError, nncf.ValidationError):
    """The calibration data or the example input cannot be used with the model."""


class BudgetError(errors.BudgetError, nncf.ValidationError):
    """No choice of ranks meets the budget."""


class PlanError(errors.PlanError, nncf.ValidationError):
    """A plan does not fit the model, or a layer of it cannot be solved."""


class StatisticsError(errors.StatisticsError, nncf.ValidationError):
    """A file of statistics cannot be used, or is of another network."""


class EvaluationError(errors.EvaluationError, nncf.ValidationError):
    """A ``validation_fn`` failed; the best network until then is in ``compressed``, its plan in ``plan``."""


class PluginError(errors.PluginError, nncf.InstallationError):
    """A plugin is broken, conflicts with another or is not installed."""


class ModelError(errors.LowRankError, nncf.UnsupportedModelError):
    """The model is in a state that cannot be compressed."""


class StateError(errors.PlanError, nncf.ValidationError):
    """A saved state is damaged, of a newer format, or of another network."""


_AS_NNCF: dict[type[errors.LowRankError], type[errors.LowRankError]] = {
    errors.ConfigurationError: ConfigurationError,
    errors.CalibrationError: CalibrationError,
    errors.BudgetError: BudgetError,
    errors.PlanError: PlanError,
    errors.StatisticsError: StatisticsError,
    errors.EvaluationError: EvaluationError,
    errors.PluginError: PluginError,
}
"""What each of the core's errors is to users of NNCF."""


@contextmanager
def as_nncf_errors() -> Iterator[None]:
    """Raise the core's errors as errors of NNCF, with the same message and attributes.

    >>> with as_nncf_errors():
    ...     raise errors.BudgetError("The budget cannot be met.")
    Traceback (most recent call last):
        ...
    lowrank_nncf.errors.BudgetError: The budget cannot be met.
    """
    try:
        yield
    except errors.LowRankError as error:
        raised = _AS_NNCF.get(type(error))
        if raised is None:
            raise
        made = raised(*error.args)
        vars(made).update(vars(error))
        raise made from error
