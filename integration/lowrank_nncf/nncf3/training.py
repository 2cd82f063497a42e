# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What a training loop written for NNCF 2 asks of a controller: a loss, a scheduler and the stage of compression."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from torch import Tensor

from lowrank_nncf.nncf3.algorithms.pruners import Pruner


class CompressionStage(IntEnum):
    """How far the compression of a model has come, as in NNCF 2.

    >>> CompressionStage.PARTIALLY_COMPRESSED < CompressionStage.FULLY_COMPRESSED
    True
    """

    UNCOMPRESSED = 0
    PARTIALLY_COMPRESSED = 1
    FULLY_COMPRESSED = 2


class CompressionLoss:
    """What compression adds to the training loss; call it for a scalar.

    >>> from lowrank_nncf.nncf3.algorithms.pruners import NoPruner
    >>> CompressionLoss(NoPruner())()
    tensor(0.)

    :param pruner: what is trained.
    """

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner

    def calculate(self) -> Tensor:
        """Return the loss: a scalar with a gradient where masks are learned, zero otherwise."""
        return self._pruner.loss()

    __call__ = calculate

    def statistics(self, quickly_collected_only: bool = False) -> dict[str, float]:
        """Return the value of the loss.

        :param quickly_collected_only: taken for likeness with NNCF 2.
        """
        return {"loss": float(self.calculate().detach())}

    def get_state(self) -> dict[str, int]:
        """Return an empty dictionary: the loss has no state beside the masks."""
        return {}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Do nothing; for likeness with NNCF 2."""


class CompressionScheduler:
    """Lets the level of pruning rise; called at the beginning of each epoch and each training step.

    >>> from lowrank_nncf.nncf3.algorithms.pruners import NoPruner
    >>> from lowrank_nncf.nncf3.algorithms.schedules import Schedule
    >>> pruner = NoPruner()
    >>> pruner.schedule = Schedule(lambda epoch: 0.25 * epoch, initial=0.0, target=0.5, freeze_epoch=3)
    >>> scheduler = CompressionScheduler(pruner)
    >>> for epoch in range(4):
    ...     scheduler.epoch_step()
    ...     scheduler.current_sparsity_level, scheduler.stage().name
    (0.0, 'UNCOMPRESSED')
    (0.25, 'PARTIALLY_COMPRESSED')
    (0.5, 'FULLY_COMPRESSED')
    (0.5, 'FULLY_COMPRESSED')

    :param pruner: what it drives.
    """

    def __init__(self, pruner: Pruner) -> None:
        self._pruner, self._schedule = pruner, pruner.schedule
        self.current_step = self.current_epoch = -1
        self._steps_in_epoch = 0

    def step(self, next_step: int | None = None) -> None:
        """Begin a training step.

        :param next_step: its number, from 0; the one after the last where it is left out.
        """
        self.current_step = self.current_step + 1 if next_step is None else next_step
        self._steps_in_epoch += 1
        if self._schedule.steps_per_epoch is not None:
            self._update()

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begin an epoch.

        :param next_epoch: its number, from 0; the one after the last where it is left out.
        """
        self.current_epoch = self.current_epoch + 1 if next_epoch is None else next_epoch
        self._steps_in_epoch = 0
        if self.current_epoch >= self._schedule.freeze_epoch:
            self._pruner.freeze()
        elif self._schedule.steps_per_epoch is None:
            self._update()

    @property
    def current_sparsity_level(self) -> float:
        """The level of pruning that the schedule has come to."""
        if self.current_epoch < 0:
            return self._schedule.initial
        return self._schedule.level(min(self._position(), max(0, self._schedule.freeze_epoch - 1)))

    @property
    def target_level(self) -> float:
        """The level of pruning at the end of the schedule."""
        return self._schedule.target

    def get_state(self) -> dict[str, int]:
        """Return the counters, for a checkpoint."""
        return {
            "current_step": self.current_step,
            "current_epoch": self.current_epoch,
            "steps_in_epoch": self._steps_in_epoch,
        }

    def load_state(self, state: Mapping[str, int]) -> None:
        """Take up the counters of a checkpoint. Masks are not touched: they come with the weights.

        :param state: what :meth:`get_state` returned, here or in NNCF 2.
        """
        self.current_step, self.current_epoch = state["current_step"], state["current_epoch"]
        self._steps_in_epoch = state.get("steps_in_epoch", 0)

    def _update(self) -> None:
        if 0 <= self.current_epoch < self._schedule.freeze_epoch:
            self._pruner.set_level(self._schedule.level(self._position()))

    def _position(self) -> float:
        if self._schedule.steps_per_epoch is None:
            return self.current_epoch
        return self.current_epoch + max(0, self._steps_in_epoch - 1) / self._schedule.steps_per_epoch

    def stage(self) -> CompressionStage:
        """How far the schedule has come."""
        level = self.current_sparsity_level
        if level >= self.target_level:
            return CompressionStage.FULLY_COMPRESSED
        return CompressionStage.UNCOMPRESSED if level == 0 else CompressionStage.PARTIALLY_COMPRESSED
