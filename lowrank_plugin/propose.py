# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The choices for each layer: keep it dense, or a decomposer at a rank."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lowrank_hooks import CostModelRecord, DecomposerRecord, KernelShape, Option, Problem, Rank, StageShape
from lowrank_plugin.costs import macs, parameters
from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.survey import Layer

logger = logging.getLogger("lowrank_plugin")

DENSE = "dense"


@dataclass(frozen=True)
class Proposal:
    """One choice for one layer.

    :param decomposer: the decomposer's name, or ``"dense"``.
    :param rank: its rank; empty for dense.
    :param error: predicted relative error.
    :param cost: in the unit of the budget, over the example run.
    :param macs: multiply-accumulates over the example run.
    :param parameters: number of weights.
    """

    decomposer: str
    rank: Rank
    error: float
    cost: float
    macs: float
    parameters: float


class Pricing:
    """What chains cost at one layer.

    :param layer: the layer.
    :param module: its module, for its geometry.
    :param model: the unit of the budget.
    """

    def __init__(self, layer: Layer, module: nn.Module, model: CostModelRecord) -> None:
        self._layer, self._module, self._model = layer, module, model

    def proposal(self, decomposer: str, rank: Rank, error: float, stages: tuple[StageShape, ...]) -> Proposal:
        """Price a chain.

        :param decomposer: whose chain it is.
        :param rank: its rank.
        :param error: its predicted relative error.
        :param stages: the sizes of the chain, for one group.
        """
        positions, groups = self._layer.positions(self._module, stages), self._layer.shape.groups
        return Proposal(
            decomposer,
            rank,
            error,
            self._model.cost(stages, positions, groups),
            macs(stages, positions, groups),
            parameters(stages, positions, groups),
        )

    def dense(self) -> Proposal:
        """The layer as it is."""
        shape = self._layer.shape
        return self.proposal(DENSE, (), 0.0, (StageShape(shape.out_channels, shape.in_channels, shape.kernel_size),))


def fits(record: DecomposerRecord, shape: KernelShape) -> bool:
    """Whether a decomposer takes kernels with this many spatial axes."""
    return len(shape.kernel_size) in record.spatial_axes


def propose(problem: Problem, pricing: Pricing, records: Sequence[DecomposerRecord]) -> list[Proposal]:
    """All points of all competing decomposers that are cheaper than the layer itself, after the layer itself.

    :param problem: the kernel and the norm.
    :param pricing: for the costs.
    :param records: the decomposers that compete.
    :return: the dense choice first; alone, where no chain would be cheaper. A decomposer that refuses the problem with
        a ValueError, such as for its norm, leaves the others to compete.
    """
    dense = pricing.dense()
    found = [dense]
    for record in records:
        if not fits(record, problem.shape):
            continue
        try:
            curve = record.decomposer.curve(problem)
        except ValueError as error:
            logger.warning("%s does not compete: %s", record.name, error)
            continue
        for point in curve:
            stages = record.decomposer.structure(problem.shape, point.rank)
            proposal = pricing.proposal(record.name, point.rank, point.error, stages)
            if proposal.cost < dense.cost:
                found.append(proposal)
    return found


def by_hand(layer: Layer, rank: Rank, pricing: Pricing, records: Sequence[DecomposerRecord]) -> Proposal:
    """The choice for a rank that a user gave: the first decomposer that takes so many ranks.

    :param layer: the layer.
    :param rank: the rank.
    :param pricing: for the costs.
    :param records: the decomposers allowed, in order.
    :return: the choice; its error is not known before the fit and is given as NaN.
    :raises ConfigurationError: where no decomposer takes the rank, with the reasons.
    """
    reasons = []
    for record in records:
        if not fits(record, layer.shape):
            continue
        try:
            stages = record.decomposer.structure(layer.shape, rank)
        except ValueError as error:
            reasons.append(f"{record.name}: {error}")
            continue
        return pricing.proposal(record.name, rank, float("nan"), stages)
    msg = f"No decomposer takes rank {list(rank)} at layer {layer.name!r}. {' '.join(reasons)}".strip()
    raise ConfigurationError(msg)


def options(proposals: Mapping[str, Sequence[Proposal]], weights: Mapping[str, float]) -> dict[str, list[Option]]:
    """The choices of all layers as rank policies see them.

    :param proposals: the choices by layer name.
    :param weights: what a squared relative error of 1 at a layer costs the model; 1 where one is missing.
    """
    return {
        name: [Option(proposal.cost, proposal.error, weights.get(name, 1.0)) for proposal in of_layer]
        for name, of_layer in proposals.items()
    }
