# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""How the level of pruning rises while a network is trained: the schedules of NNCF 2, over NNCF 3's functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nncf.torch.function_hook.pruning.scheduler_fns import exponential_ratio_scheduler, multi_step_ratio_scheduler

from lowrank_nncf.errors import ConfigurationError
from lowrank_nncf.nncf3.sections import PruningParams, PruningSection
from lowrank_plugin.host import Json

_LEVEL = {"description": "a number from 0, below 1", "type": "number", "minimum": 0, "exclusiveMaximum": 1}
_EPOCH = {"description": "a whole number from 0", "type": "integer", "minimum": 0}
KINDS = ("polynomial", "exponential", "multistep")

LEVEL: Json = _LEVEL
PARAMETERS: Json = {
    "schedule": {"description": f"one of {', '.join(map(repr, KINDS))}", "enum": list(KINDS)},
    "sparsity_target": _LEVEL,
    "sparsity_target_epoch": _EPOCH,
    "sparsity_freeze_epoch": _EPOCH,
    "update_per_optimizer_step": {"description": "true or false", "type": "boolean"},
    "steps_per_epoch": {"description": "a positive integer", "type": "integer", "minimum": 1},
    "multistep_steps": {"description": "a list of epochs", "type": "array", "items": _EPOCH},
    "multistep_sparsity_levels": {
        "description": "a list of numbers from 0, below 1",
        "type": "array",
        "items": _LEVEL,
        "minItems": 1,
    },
    "power": {"description": "a number above 0", "type": "number", "exclusiveMinimum": 0},
    "concave": {"description": "true or false", "type": "boolean"},
}
"""The keys of ``"params"`` that say how the level rises, as in NNCF 2."""


@dataclass(frozen=True)
class Schedule:
    """A level of pruning for every moment of a training.

    :param level: called with the epoch, from 0; with a fraction where ``steps_per_epoch`` is given.
    :param initial: the level before the first epoch.
    :param target: the level at the end.
    :param freeze_epoch: the epoch from which masks stay as they are.
    :param steps_per_epoch: training steps in an epoch, where the level changes at each; None where once an epoch.
    """

    level: Callable[[float], float]
    initial: float
    target: float
    freeze_epoch: int = 100
    steps_per_epoch: int | None = None


def schedule_of(section: PruningSection, kind: str) -> Schedule:
    """The schedule that a section asks for, with the defaults of NNCF 2.

    Without ``"params"`` the level rises from ``"sparsity_init"`` to one half at epoch 90; who trains nothing has
    ``"sparsity_init"``. In NNCF's local mode the level stays, unless the section says how it rises.

    >>> params = {"schedule": "multistep", "multistep_steps": [2], "multistep_sparsity_levels": [0.25, 0.75]}
    >>> schedule = schedule_of({"params": params}, "polynomial")
    >>> [schedule.level(epoch) for epoch in range(4)]
    [0.25, 0.25, 0.75, 0.75]

    :param section: the section, valid by its schema.
    :param kind: the schedule where the section names none.
    :raises ConfigurationError: where its keys contradict each other.
    """
    given = section.get("params", {})
    kind, initial = given.get("schedule", kind), section.get("sparsity_init", 0.0)
    freeze = given.get("sparsity_freeze_epoch", 100)
    if kind == "multistep":
        return _multistep(section, freeze)
    target, last = given.get("sparsity_target", max(0.5, initial)), given.get("sparsity_target_epoch", 90)
    if given.get("sparsity_level_setting_mode") == "local" and not given.keys() & PARAMETERS.keys():
        target = initial
    if target < initial:
        msg = (
            f"'sparsity_target' is {target}, below 'sparsity_init', {initial}. Pruning cannot be taken back: raise it."
        )
        raise ConfigurationError(msg)
    if target == initial or last == 0:
        return Schedule(lambda epoch: target, initial, target, freeze)
    if kind == "exponential":
        ends = {"initial_ratio": initial, "target_ratio": target, "target_epoch": last}
        return Schedule(lambda epoch: exponential_ratio_scheduler(epoch, **ends), initial, target, freeze)
    return _polynomial(given, initial, target, last, freeze)


def _polynomial(params: PruningParams, initial: float, target: float, last: int, freeze: int) -> Schedule:
    power, concave = params.get("power", 0.9), params.get("concave", True)

    def level(epoch: float) -> float:
        progress = min(1.0, epoch / last)
        if concave:
            return float(target - (target - initial) * (1 - progress) ** power)
        return float(initial + (target - initial) * progress**power)

    steps = params.get("steps_per_epoch") if params.get("update_per_optimizer_step") else None
    if params.get("update_per_optimizer_step") and steps is None:
        msg = "'update_per_optimizer_step' needs 'steps_per_epoch', the number of training steps in an epoch."
        raise ConfigurationError(msg)
    return Schedule(level, initial, target, freeze, steps)


def _multistep(section: PruningSection, freeze: int) -> Schedule:
    params = section["params"]
    epochs = sorted(params.get("multistep_steps", [90]))
    levels = params.get("multistep_sparsity_levels", [0.1, 0.5])
    if len(levels) != len(epochs) + 1:
        msg = (
            f"'multistep_sparsity_levels' has {len(levels)} levels for {len(epochs)} 'multistep_steps': expected one "
            "more level than steps, since the first holds from the beginning."
        )
        raise ConfigurationError(msg)
    if section.get("sparsity_init", levels[0]) != levels[0]:
        msg = (
            f"'sparsity_init' is {section['sparsity_init']}, but the first of 'multistep_sparsity_levels' is "
            f"{levels[0]} and holds from the beginning. Leave 'sparsity_init' out."
        )
        raise ConfigurationError(msg)
    steps = dict(zip([0, *epochs], levels, strict=True))
    return Schedule(lambda epoch: multi_step_ratio_scheduler(int(epoch), steps=steps), levels[0], levels[-1], freeze)
