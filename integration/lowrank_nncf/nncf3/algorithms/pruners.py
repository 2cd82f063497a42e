# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What training changes of a pruned model: which weights are masked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch
from nncf.torch.function_hook import get_hook_storage, is_wrapped
from nncf.torch.function_hook.pruning.magnitude.algo import update_pruning_ratio
from nncf.torch.function_hook.pruning.magnitude.modules import UnstructuredPruningMask
from nncf.torch.function_hook.pruning.rb.losses import RBLoss
from nncf.torch.function_hook.pruning.rb.modules import RBPruningMask, binary_mask
from torch import Tensor, nn

from lowrank_nncf.nncf3.algorithms.pruning import mode_of, schedule_of
from lowrank_nncf.nncf3.algorithms.schedules import Schedule
from lowrank_nncf.nncf3.model.wrapping import MASKS, hooks
from lowrank_nncf.nncf3.sections import MAGNITUDE, REGULARIZATION, PruningSection, Section


class Pruner(Protocol):
    """Chooses which weights of a model are masked."""

    schedule: Schedule

    def set_level(self, level: float) -> None:
        """Prune this share of the weights from now on."""

    def freeze(self) -> None:
        """Leave the masks as they are from now on."""

    def loss(self) -> Tensor:
        """What pruning adds to the training loss: a scalar."""
        ...


def pruner_of(model: nn.Module, sections: Mapping[str, Section]) -> Pruner:
    """The pruner of a compressed model.

    :param model: the model.
    :param sections: the sections of its config by algorithm.
    """
    name = next((name for name in (MAGNITUDE, REGULARIZATION) if name in sections), None)
    if name is None or not is_wrapped(model):
        return NoPruner()
    section = cast("PruningSection", sections[name])
    schedule = schedule_of(name, section)
    if name == MAGNITUDE:
        return MagnitudePruner(model, schedule, section)
    return LearnedPruner(model, schedule)


class NoPruner:
    """For a model without pruning: nothing changes in training."""

    schedule = Schedule(lambda epoch: 0.0, 0.0, 0.0)

    def set_level(self, level: float) -> None:
        """Change nothing."""

    def freeze(self) -> None:
        """Change nothing."""

    def loss(self) -> Tensor:
        """Return zero."""
        return torch.zeros([])


class MagnitudePruner:
    """Small weights are zero.

    :param model: a model pruned by ``"magnitude_sparsity"``.
    :param schedule: how the level rises.
    :param section: the section of the config.
    """

    def __init__(self, model: nn.Module, schedule: Schedule, section: PruningSection) -> None:
        self.schedule = schedule
        self._model, self._mode = model, mode_of(section)

    def set_level(self, level: float) -> None:
        """Choose the masks anew, by the weights as they are now."""
        if next(hooks(self._model, MASKS), None) is not None:
            update_pruning_ratio(self._model, self._mode, level)

    def freeze(self) -> None:
        """Masks change in :meth:`set_level` only, which the scheduler no longer calls."""

    def loss(self) -> Tensor:
        """Return zero."""
        return torch.zeros([])


class LearnedPruner:
    """The masks are parameters; a loss draws the share of zeros to the level.

    :param model: a model pruned by ``"rb_sparsity"``.
    :param schedule: how the level rises.
    """

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        self.schedule = schedule
        self._model, self._loss = model, RBLoss(model, schedule.initial)

    def set_level(self, level: float) -> None:
        """Draw the share of zeros to this level from now on."""
        self._loss.target_ratio = level

    @torch.no_grad()
    def freeze(self) -> None:
        """Put fixed masks in the place of the learned ones, which would keep on drawing random bits in training."""
        for name, mask in list(hooks(self._model, (RBPruningMask,))):
            fixed = UnstructuredPruningMask(tuple(mask.mask.shape)).to(mask.mask.device)
            fixed.binary_mask.copy_(binary_mask(mask.mask))
            get_hook_storage(self._model).set_submodule(name, fixed)

    def loss(self) -> Tensor:
        """Return NNCF's regularization loss; zero once the masks are frozen."""
        if next(hooks(self._model, (RBPruningMask,)), None) is None:
            return torch.zeros([])
        loss: Tensor = self._loss()
        return loss
