# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Who is compressed: a model, what of it can be, and what was asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from lowrank_hooks import NormKind
from lowrank_plugin.errors import PlanError
from lowrank_plugin.layers.holders import own_size
from lowrank_plugin.layers.survey import Survey
from lowrank_plugin.plugins import Manager
from lowrank_plugin.settings import Settings
from lowrank_plugin.support.progress import Steps

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A model on its way through the steps.

    :param model: the network; only the last step changes it, and only in place.
    :param survey: what of it can be compressed, and why the rest cannot.
    :param settings: what the user asked for.
    :param norm: the norm of the errors.
    :param example: an input with one sample, or the one that the user gave: what runs are timed with.
    :param registry: what plugins offer.
    :param steps: who hears of the steps.
    :param inner: layers whose chains must not get a bias, see :func:`lowrank_plugin.chains.stages.inner_stages`.
    """

    model: nn.Module
    survey: Survey
    settings: Settings
    norm: NormKind
    example: object
    registry: Manager
    steps: Steps
    inner: frozenset[str] = frozenset()

    def without(self, refusals: Mapping[str, str]) -> Subject:
        """The same where some layers stay dense that were to be compressed.

        :param refusals: the reason for each of them, as a phrase.
        """
        kept = {name: layer for name, layer in self.survey.layers.items() if name not in refusals}
        return replace(self, survey=replace(self.survey, layers=kept, refusals={**self.survey.refusals, **refusals}))

    def largest_left_alone(self) -> str:
        """A sentence why the largest of the layers that are not compressed is not; empty where there is none."""

        refusals = self.survey.refusals
        if not refusals:
            return "" if self.survey.layers else "It holds no weights."
        largest = max(refusals, key=lambda name: own_size(self.model.get_submodule(name)))
        return f"The largest layer left alone is {largest!r}: {refusals[largest]}."


def refuse(refusals: Mapping[str, str], on_failure: str) -> None:
    """Say which layers stay dense, or that they must not.

    >>> refuse({"fc": "its inputs contain NaN or infinity"}, on_failure="raise")
    Traceback (most recent call last):
        ...
    lowrank_plugin.errors.PlanError: Layer 'fc' cannot be compressed: its inputs contain NaN or infinity.

    :param refusals: layers that were to be compressed, and why they cannot be, as a phrase.
    :param on_failure: what the user wants then: ``"keep_dense"`` or ``"raise"``.
    :raises PlanError: in the latter case, where there is any.
    """
    for name, reason in refusals.items():
        if on_failure == "raise":
            msg = f"Layer {name!r} cannot be compressed: {reason}."
            raise PlanError(msg)
        logger.warning("Layer %s stays dense: %s.", name, reason)
