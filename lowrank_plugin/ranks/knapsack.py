# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The multiple-choice knapsack: one option a layer, least expected loss, and how far from the least it can be.

Everything rests on the Lagrangian relaxation. Its optimum, the lower convex hulls of all layers descended together, is
found by sorting, bounds the loss of every choice from below and rules most options out; what is left is small enough
for dynamic programming.

[1] Kellerer, Pferschy and Pisinger, "Knapsack Problems", Springer 2004, chapter 11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lowrank_hooks import Option
from lowrank_plugin.errors import BudgetError

Options = Mapping[str, Sequence[Option]]

_STATES = (64, 1024)
"""Most partial choices kept: quickly to narrow the gap, then among the few options that are left."""


@dataclass(frozen=True)
class Relaxation:
    """The optimum of the linear relaxation, in which one layer may mix two options.

    :param chosen: the same choice with that layer at the cheaper of its two, so that the budget is met.
    :param bound: the loss of the relaxation: no choice under the budget has less.
    :param multiplier: expected loss per unit of cost at which the budget is met.
    """

    chosen: dict[str, int]
    bound: float
    multiplier: float


def relax(options: Options, budget: float) -> Relaxation:
    """Solve the linear relaxation: from everything dense, down the hulls, the step with the least slope first ([1]).

    >>> options = {"a": [Option(10, 0.0), Option(4, 0.1)], "b": [Option(10, 0.0), Option(5, 0.5)]}
    >>> relaxation = relax(options, 17)
    >>> relaxation.chosen, round(relaxation.bound, 4)
    ({'a': 1, 'b': 0}, 0.005)

    :param options: for each layer its options, the first of which keeps it dense.
    :param budget: what all layers together may cost.
    :raises BudgetError: where even the cheapest options cost more.
    """
    check_reachable(options, budget)
    hulls = {name: lower_hull(of_layer) for name, of_layer in options.items()}
    steps = sorted(
        (
            (_slope(options[name], here, there), name, there)
            for name, hull in hulls.items()
            for here, there in pairwise(hull)
        ),
        key=lambda step: step[0],
    )
    chosen = {name: hull[0] for name, hull in hulls.items()}
    cost, bound, multiplier = total_cost(options, chosen), total_loss(options, chosen), 0.0
    for slope, name, index in steps:
        if cost <= budget:
            break
        saved = options[name][chosen[name]].cost - options[name][index].cost
        bound += slope * min(saved, cost - budget)
        cost, multiplier = cost - saved, slope
        chosen[name] = index
    return Relaxation(chosen, bound, multiplier)


def solve(options: Options, budget: float) -> dict[str, int]:
    """The least sum of expected losses: exact, unless more than a thousand partial choices stay open at once.

    An option that cannot be part of anything better than the relaxation's choice is left out: its loss plus cost, at
    the multiplier, exceeds the least of its layer by more than that choice exceeds the bound. Over the remaining
    options a dynamic programme drops what is dominated, too dear or ruled out by the same test; if there are still
    too many partial choices it keeps those of least excess. A first, narrow pass finds a better choice, with which far
    fewer options remain for the second. The result is never worse than the relaxation's choice.

    >>> solve({"a": [Option(10, 0.0), Option(5, 0.1)], "b": [Option(10, 0.0), Option(5, 0.5)]}, 15)
    {'a': 1, 'b': 0}

    :param options: for each layer its options, the first of which keeps it dense.
    :param budget: what all layers together may cost.
    :return: the index of the option taken for each layer.
    :raises BudgetError: where even the cheapest options cost more.
    """
    relaxation = relax(options, budget)
    best = relaxation.chosen
    for states in _STATES:
        gap = total_loss(options, best) - relaxation.bound
        if gap <= 0:
            break
        cores = [_core(of_layer, relaxation.multiplier, gap) for of_layer in options.values()]
        found = _search(cores, relaxation.multiplier, gap, budget, states)
        if found is not None:
            chosen = dict(zip(options, found, strict=True))
            better = total_loss(options, chosen) < total_loss(options, best)
            best = chosen if better and total_cost(options, chosen) <= budget else best
    return best


def lower_hull(options: Sequence[Option]) -> list[int]:
    """The vertices of the lower convex hull of (cost, expected loss), from the dearest to the cheapest.

    >>> lower_hull([Option(10, 0.0), Option(9, 0.9), Option(5, 0.1), Option(5, 0.2), Option(2, 1.0)])
    [0, 2, 4]

    :param options: the options of one layer.
    :return: their indices; errors rise and costs fall along them, and so do the slopes.
    """
    best = sorted(range(len(options)), key=lambda index: (options[index].error, options[index].cost))
    hull: list[int] = []
    for index in best:
        if hull and options[index].cost >= options[hull[-1]].cost:
            continue
        while len(hull) > 1 and _slope(options, hull[-2], hull[-1]) >= _slope(options, hull[-1], index):
            hull.pop()
        hull.append(index)
    return hull


def total_cost(options: Options, chosen: Mapping[str, int]) -> float:
    """What a choice costs."""
    return sum(options[name][index].cost for name, index in chosen.items())


def total_loss(options: Options, chosen: Mapping[str, int]) -> float:
    """What a choice is expected to lose."""
    return sum(options[name][index].loss for name, index in chosen.items())


def check_reachable(options: Options, budget: float) -> None:
    """Raise unless the cheapest options meet the budget.

    :raises BudgetError: naming what they cost.
    """
    least = sum(min(option.cost for option in of_layer) for of_layer in options.values())
    if not least <= budget:
        msg = (
            f"The budget leaves {max(budget, 0):.4g} for the layers that can be compressed, but at the lowest ranks "
            f"they still cost {least:.4g}. Raise the budget, allow more decomposers or lower rank_multiple."
        )
        raise BudgetError(msg)


def _slope(options: Sequence[Option], here: int, there: int) -> float:
    """Loss added for each unit of cost saved."""
    return (options[there].loss - options[here].loss) / (options[here].cost - options[there].cost)


@dataclass(frozen=True)
class _Core:
    """The options of a layer that are not ruled out.

    :param indices: their indices, int64 [n].
    :param costs: float64 [n].
    :param losses: float64 [n].
    :param least: the least of loss plus multiplier times cost.
    """

    indices: Tensor
    costs: Tensor
    losses: Tensor
    least: float


def _core(of_layer: Sequence[Option], multiplier: float, gap: float) -> _Core:
    costs = torch.tensor([option.cost for option in of_layer], dtype=torch.float64)
    losses = torch.tensor([option.loss for option in of_layer], dtype=torch.float64)
    priced = losses + multiplier * costs
    indices = (priced - priced.min() < gap).nonzero()[:, 0]
    return _Core(indices, costs[indices], losses[indices], float(priced.min()))


def _search(cores: Sequence[_Core], multiplier: float, gap: float, budget: float, states: int) -> list[int] | None:
    """Dynamic programming over the layers; the index of each layer's option, or None where nothing is better."""
    cheapest = [float(core.costs.min()) for core in cores]
    cost = loss = torch.zeros(1, dtype=torch.float64)
    least, history = 0.0, []
    for done, core in enumerate(cores, start=1):
        after, least = sum(cheapest[done:]), least + core.least
        cost = (cost[:, None] + core.costs).flatten()
        loss = (loss[:, None] + core.losses).flatten()
        excess = loss + multiplier * cost - least
        kept = ((excess < gap) & (cost + after <= budget)).nonzero()[:, 0]
        kept = kept[cost[kept].argsort(stable=True)]
        # of states in ascending order of cost, those that lose less than all cheaper ones
        lowest = loss[kept].cummin(0).values
        kept = kept[torch.cat([lowest.new_ones(min(1, len(kept)), dtype=torch.bool), loss[kept][1:] < lowest[:-1]])]
        if len(kept) > states:
            kept = kept[excess[kept].topk(states, largest=False).indices.sort().values]
        if not len(kept):
            return None
        history.append((kept // len(core.costs), core.indices[kept % len(core.costs)]))
        cost, loss = cost[kept], loss[kept]
    state, found = len(cost) - 1, []
    for parents, indices in reversed(history):
        found.append(int(indices[state]))
        state = int(parents[state])
    return found[::-1]
