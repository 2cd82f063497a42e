# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What the settings stand for: names become plugins, and what was left open is filled in."""

from __future__ import annotations

from dataclasses import replace

import torch

from lowrank_hooks import CostModelRecord, DecomposerRecord
from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.plugins import manager
from lowrank_plugin.settings import Settings


def check_device(settings: Settings) -> None:
    """See that the device can be used.

    :raises ConfigurationError: where it cannot.
    """
    try:
        torch.empty(0, device=settings.device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        msg = f"The device {settings.device!r} cannot be used here: {str(error).splitlines()[0]}"
        raise ConfigurationError(msg) from error


def competitors(settings: Settings) -> list[DecomposerRecord]:
    """The decomposers that compete; those that are named, for kernels of any size.

    :raises ConfigurationError: where a name is unknown.
    """
    if isinstance(settings.decomposers, str):
        records = [entry.record for entry in manager().registered("decomposer").values() if entry.record.automatic]
        return [record for record in records if record.int8 or settings.decomposers == "auto"]
    return [replace(manager().find("decomposer", name), largest=None) for name in settings.decomposers]


def norm_of(settings: Settings, known: bool) -> str:
    """The norm of the errors.

    :param settings: what the user asked for.
    :param known: whether there is data, or statistics of it.
    :raises ConfigurationError: where the norm needs data that is not there.
    """
    norm = settings.norm or ("covariance" if known else "frobenius")
    if norm != "frobenius" and not known:
        msg = f'The norm "{norm}" needs calibration data; give batches or statistics, or use "frobenius".'
        raise ConfigurationError(msg)
    return norm


def unit_of(settings: Settings) -> tuple[CostModelRecord, float | None]:
    """The cost model of the budget and what may remain; MACs and None where the budget is no cost or there is none."""
    unit, limit = next(iter(settings.budget.items())) if settings.budget else ("error", None)
    no_cost = unit in ("error", "accuracy_drop")
    return manager().find("cost model", "macs" if no_cost else unit), None if no_cost else limit
