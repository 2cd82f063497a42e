# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""From the choices of all layers to one choice a layer, under a budget."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lowrank_hooks import Option, RankPolicyRecord
from lowrank_plugin.costs.counted import Chain
from lowrank_plugin.errors import BudgetError, PluginError
from lowrank_plugin.ranks.policies import assess, cheapest_within
from lowrank_plugin.ranks.proposals import Choices, Proposal, options
from lowrank_plugin.statistics.weighing import Weights

Chosen = dict[str, Proposal]


def chains_of(chosen: Mapping[str, Proposal]) -> dict[str, Chain]:
    """The sizes of the chains by layer name; layers that stay dense are left out."""
    return {name: each.chain for name, each in chosen.items() if each.chain}


@dataclass(frozen=True)
class Candidates:
    """What there is to choose from.

    :param choices: by layer name.
    :param weights: what errors at each layer are expected to cost the model, per squared relative error.
    :param policy: shares a budget among the other layers.
    :param whole: what the whole model costs, in the unit of the choices.
    :param insights: what the policy found out about each layer, where it looks at them.
    :param remark: what else to say where a budget cannot be met.
    """

    choices: Mapping[str, Choices]
    weights: Mapping[str, Weights]
    policy: RankPolicyRecord
    whole: float
    insights: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""

    @property
    def hand(self) -> frozenset[str]:
        """Layers whose rank the user gave."""
        return frozenset(name for name, of_layer in self.choices.items() if of_layer.by_hand is not None)

    @property
    def least(self) -> float:
        """The smallest share of the whole model's cost that can be reached."""
        saved = sum(of_layer.dense.cost - of_layer.cheapest.cost for of_layer in self.choices.values())
        return (self.whole - saved) / self.whole

    def share(self, chosen: Mapping[str, Proposal]) -> float:
        """The share of the whole model's cost that would remain with these choices."""
        return 1 - sum(self.choices[name].dense.cost - each.cost for name, each in chosen.items()) / self.whole

    def within_share(self, share: float) -> Chosen:
        """Choices that leave at most a share of the whole model's cost.

        :param share: above 0.
        :raises BudgetError: where even the cheapest choices leave more, or there is nothing to choose.
        :raises PluginError: where the policy leaves out a layer or gives it an option that there is not.
        """
        free = self._free()
        if not self.choices and share < 1:
            msg = f"A budget of {share:g} cannot be met: nothing of this model can be compressed. {self.remark}"
            raise BudgetError(msg.rstrip())
        try:
            indices = self.policy.allocate(self._options(), self._rest(share))
        except ValueError as error:
            msg = f"A budget of {share:g} cannot be met; the least here is {self.least:.3f}. {error} {self.remark}"
            raise BudgetError(msg.rstrip()) from error
        wrong = [name for name, of_layer in free.items() if indices.get(name) not in range(len(of_layer.free))]
        if wrong:
            msg = (
                f"The rank policy {self.policy.name!r} must give layer {wrong[0]!r} the index of one of its "
                f"{len(free[wrong[0]].free)} options, not {indices.get(wrong[0])!r}."
            )
            raise PluginError(msg)
        return self._chosen({name: of_layer.free[indices[name]] for name, of_layer in free.items()})

    def within_error(self, error: float) -> Chosen:
        """The cheapest choice of each layer with at most a relative error."""
        free = self._free()
        indices = cheapest_within(self._options(), error)
        return self._chosen({name: of_layer.free[indices[name]] for name, of_layer in free.items()})

    def by_hand(self) -> Chosen:
        """Only the ranks that the user gave."""
        return self._chosen({name: of_layer.dense for name, of_layer in self._free().items()})

    def only(self, names: Container[str]) -> Candidates:
        """The same without all layers but some; what the others cost counts as fixed."""
        return replace(self, choices={name: of_layer for name, of_layer in self.choices.items() if name in names})

    def quality(self, chosen: Mapping[str, Proposal], share: float | None) -> dict[str, float]:
        """How good some choices are, see :func:`lowrank_plugin.ranks.policies.assess`; layers by hand do not count.

        :param chosen: for each layer one of its choices.
        :param share: of the whole model's cost that might remain; None compares with choices that cost no more.
        """
        indices = {name: of_layer.free.index(chosen[name]) for name, of_layer in self._free().items()}
        return assess(self._options(), indices, None if share is None else self._rest(share))

    def _options(self) -> dict[str, list[Option]]:
        return options(self._free(), self.weights, self.insights)

    def _rest(self, share: float) -> float:
        """What the layers left to the policy may cost."""
        # in this order, so that a share of 1 leaves exactly what the dense layers cost
        dense = sum(of_layer.dense.cost for of_layer in self._free().values())
        added = sum(each.by_hand.cost - each.dense.cost for each in self.choices.values() if each.by_hand)
        return dense - (1 - share) * self.whole - added

    def _free(self) -> dict[str, Choices]:
        return {name: of_layer for name, of_layer in self.choices.items() if of_layer.by_hand is None}

    def _chosen(self, free: Mapping[str, Proposal]) -> Chosen:
        return {name: of_layer.by_hand or free[name] for name, of_layer in self.choices.items()}
