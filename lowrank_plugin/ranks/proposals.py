# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The choices for each layer: keep it dense, or a decomposer at a rank."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn

from lowrank_hooks import (
    CostModelRecord,
    DecomposerRecord,
    KernelShape,
    MeasuredCost,
    Option,
    Point,
    Problem,
    Rank,
)
from lowrank_plugin.costs.counted import Chain, macs, parameters, sizes
from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.layers.survey import Layer
from lowrank_plugin.plugins import DECOMPOSERS, Manager
from lowrank_plugin.settings import Settings
from lowrank_plugin.solvers import batching
from lowrank_plugin.statistics.weighing import Weights, weight_at

logger = logging.getLogger(__name__)

_TIE = 1e-3

DENSE = "dense"


class Draft(NamedTuple):
    """A choice whose price is not known yet.

    :param decomposer: the decomposer's name, or ``"dense"``.
    :param rank: its rank; empty for dense.
    :param error: predicted relative error.
    :param chain: the sizes of the stages.
    """

    decomposer: str
    rank: Rank
    error: float
    chain: Chain


@dataclass(frozen=True)
class Proposal:
    """One choice for one layer.

    :param decomposer: the decomposer's name, or ``"dense"``.
    :param rank: its rank; empty for dense.
    :param error: predicted relative error.
    :param chain: the sizes of the stages; empty for dense.
    :param cost: in the unit of the budget, over the example run.
    :param macs: multiply-accumulates over the example run.
    :param parameters: number of weights, and of biases where the layer itself has none.
    """

    decomposer: str
    rank: Rank
    error: float
    chain: Chain
    cost: float
    macs: float
    parameters: float


@dataclass(frozen=True)
class Choices:
    """What there is to choose from for one layer.

    :param dense: the choice that keeps it as it is.
    :param others: chains that cost less, for the rank policy to choose from.
    :param by_hand: the chain at the rank that the user gave, whatever it costs; it is taken, and there are no others.
    """

    dense: Proposal
    others: tuple[Proposal, ...] = ()
    by_hand: Proposal | None = None

    @property
    def free(self) -> tuple[Proposal, ...]:
        """Those that a rank policy has, in the order of its options: the first keeps the layer dense."""
        return (self.dense, *self.others)

    @property
    def cheapest(self) -> Proposal:
        """The one that costs least; the one by hand, where there is one."""
        return self.by_hand or min(self.free, key=lambda each: each.cost)


class Pricing:
    """What chains cost at one layer.

    :param layer: the layer.
    :param module: its module, for its geometry.
    :param model: the unit of the budget.
    :param measured: what ``model.measure`` returned, where the unit is measured.
    :param biases: how many biases a chain brings with it, where the layer has none.
    """

    def __init__(
        self,
        layer: Layer,
        module: nn.Module,
        model: CostModelRecord,
        measured: MeasuredCost | None = None,
        biases: int = 0,
    ) -> None:
        self._layer, self._module, self._model, self._measured, self._biases = layer, module, model, measured, biases
        self._known: dict[Chain, tuple[Chain, tuple[int, ...], int]] = {}

    def proposals(self, drafts: Iterable[Draft]) -> tuple[Proposal, list[Proposal]]:
        """Price the layer as it is and other choices.

        :param drafts: the other choices.
        :return: the layer as it is, and a proposal for each draft.
        """
        drafts = [Draft(DENSE, (), 0.0, ()), *drafts]
        if self._measured is not None:
            costs: Iterable[float] = self._measured.layer(self._layer.name, [draft.chain for draft in drafts])
        else:
            costs = (self._cost(draft.chain) for draft in drafts)
        dense, *others = [
            Proposal(*draft, cost, macs(*self._sizes(draft.chain)), self._parameters(draft.chain))
            for draft, cost in zip(drafts, costs, strict=True)
        ]
        return dense, others

    def smaller(self, drafts: Iterable[Draft]) -> list[Draft]:
        """Those with fewer multiply-accumulates or fewer parameters than the layer: no other can be cheaper.

        :param drafts: any choices.
        """
        dense, weights = macs(*self._sizes(())), self._parameters(())
        return [
            draft
            for draft in drafts
            if macs(*self._sizes(draft.chain)) < dense or self._parameters(draft.chain) < weights
        ]

    def _cost(self, chain: Chain) -> float:
        # stages do not tell of biases, so no cost model can count them
        if self._model.cost is parameters:
            return self._parameters(chain)
        return self._model.cost(*self._sizes(chain))  # type: ignore[misc]

    def _parameters(self, chain: Chain) -> float:
        return parameters(*self._sizes(chain)) + (self._biases if chain else 0)

    def _sizes(self, chain: Chain) -> tuple[Chain, tuple[int, ...], int]:
        if chain not in self._known:
            self._known[chain] = sizes(self._layer, self._module, chain)
        return self._known[chain]


def takes(record: DecomposerRecord, shape: KernelShape) -> bool:
    """Whether a decomposer takes kernels with this many spatial axes and weights.

    >>> from lowrank_plugin.solvers import SpatialSvd
    >>> record = DecomposerRecord("spatial_svd", SpatialSvd(), spatial_axes=(2,))
    >>> takes(record, KernelShape(1, 8, 8, (3, 3))), takes(record, KernelShape(1, 8, 8))
    (True, False)

    :param record: the decomposer.
    :param shape: of the kernel.
    """
    return len(shape.kernel_size) in record.spatial_axes and shape.parameters <= (record.largest or math.inf)


def error_curves(problems: Sequence[Problem], records: Sequence[DecomposerRecord]) -> list[dict[str, Sequence[Point]]]:
    """What the competing decomposers predict for layers that are alike.

    :param problems: the kernels and the norms.
    :param records: the decomposers that compete.
    :return: for each problem the curves by the decomposers' names. A decomposer that refuses a problem with a
        ValueError, such as for its norm, leaves the others to compete.
    """
    found: list[dict[str, Sequence[Point]]] = [{} for _ in problems]
    for record in records:
        if takes(record, problems[0].shape):
            for of_problem, curve in zip(found, _curves(record, problems), strict=True):
                of_problem[record.name] = curve
    return found


def _curves(record: DecomposerRecord, problems: Sequence[Problem]) -> list[Sequence[Point]]:
    try:
        return batching.curves(record.decomposer, problems)
    except ValueError as error:
        if len(problems) > 1:  # the others may be welcome
            return [curve for problem in problems for curve in _curves(record, [problem])]
        logger.warning("%s does not compete: %s", record.name, error)
        return [()]


def propose(
    shape: KernelShape,
    curves: Mapping[str, Sequence[Point]],
    pricing: Pricing,
    records: Sequence[DecomposerRecord],
) -> Choices:
    """All points of all competing decomposers that are cheaper than the layer itself, beside the layer itself.

    :param shape: of the layer's kernel.
    :param curves: from :func:`error_curves`.
    :param pricing: for the costs.
    :param records: the decomposers that compete.
    :return: the dense choice alone, where no chain would be cheaper.
    """
    drafts: dict[Chain, Draft] = {}
    for record in records:
        for point in curves.get(record.name, ()):
            if not math.isfinite(point.error):
                logger.warning(
                    "%s predicts the error %s at rank %s: not offered.", record.name, point.error, point.rank
                )
                continue
            chain = tuple(record.decomposer.structure(shape, point.rank))
            # of two equal chains the first counts, unless the other is truly better: rounding must not decide
            if chain not in drafts or point.error < (1 - _TIE) * drafts[chain].error:
                drafts[chain] = Draft(record.name, point.rank, point.error, chain)
    dense, others = pricing.proposals(pricing.smaller(drafts.values()))
    return Choices(dense, tuple(proposal for proposal in others if proposal.cost < dense.cost))


def by_hand(layer: Layer, rank: Rank, pricing: Pricing, records: Sequence[DecomposerRecord]) -> Choices:
    """The choice for a rank that a user gave: the first decomposer that takes so many ranks.

    :param layer: the layer.
    :param rank: the rank.
    :param pricing: for the costs.
    :param records: the decomposers allowed, in order.
    :return: the dense choice and that one; its error is not known before the fit and is given as NaN.
    :raises ConfigurationError: where no decomposer takes the rank, with the reasons.
    """
    reasons = []
    for record in records:
        if not takes(record, layer.shape):
            continue
        try:
            chain = tuple(record.decomposer.structure(layer.shape, rank))
        except ValueError as error:
            reasons.append(f"{record.name}: {error}")
            continue
        dense, (chosen,) = pricing.proposals([Draft(record.name, rank, math.nan, chain)])
        return Choices(dense, by_hand=chosen)
    msg = f"No decomposer takes rank {list(rank)} at layer {layer.name!r}. {' '.join(reasons)}".strip()
    raise ConfigurationError(msg)


def options(
    choices: Mapping[str, Choices], weights: Mapping[str, Weights], insights: Mapping[str, Any]
) -> dict[str, list[Option]]:
    """The choices of all layers as rank policies see them.

    :param choices: by layer name.
    :param weights: what errors at a layer cost the model per squared error; 1 where they are missing.
    :param insights: what the policy found out about each layer, where it looks at them.
    """
    return {
        name: [
            Option(proposal.cost, proposal.error, weight_at(weights.get(name, ()), proposal.error), insights.get(name))
            for proposal in of_layer.free
        ]
        for name, of_layer in choices.items()
    }


def competitors(settings: Settings, registry: Manager) -> list[DecomposerRecord]:
    """The decomposers that compete; those that are named, for kernels of any size.

    :param settings: what the user asked for.
    :param registry: what plugins offer.
    :raises ConfigurationError: where a name is unknown.
    """
    if isinstance(settings.decomposers, str):
        records = [entry.record for entry in registry.registered(DECOMPOSERS).values() if entry.record.automatic]
        return [record for record in records if record.int8 or settings.decomposers == "auto"]
    return [replace(registry.find(DECOMPOSERS, name), largest=None) for name in settings.decomposers]
