# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The built-in rank policies: how a budget is shared among the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from lowrank_hooks import Option
from lowrank_plugin.errors import BudgetError

Options = Mapping[str, Sequence[Option]]


def lagrangian(options: Options, budget: float) -> dict[str, int]:
    """Minimise the sum of expected losses: a multiple-choice knapsack on the layers' convex hulls.

    Starting from everything dense, the step down some layer's hull that costs the least error per unit of cost saved
    is taken until the budget is met; what is then left over is spent on the best single changes. Every choice before
    the last step is the exact optimum for its own cost (the Lagrangian relaxation with multiplier equal to the slope),
    so the result is optimal up to one step of one layer.

    >>> options = {"a": [Option(10, 0.0), Option(5, 0.1)], "b": [Option(10, 0.0), Option(5, 0.5)]}
    >>> lagrangian(options, 15)
    {'a': 1, 'b': 0}

    :param options: for each layer its options, the first of which keeps it dense.
    :param budget: what all layers together may cost.
    :return: the index of the option taken for each layer.
    :raises BudgetError: where even the cheapest options cost more.
    """
    _check_reachable(options, budget)
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
    cost = sum(options[name][index].cost for name, index in chosen.items())
    for _, name, index in steps:
        if cost <= budget:
            break
        cost += options[name][index].cost - options[name][chosen[name]].cost
        chosen[name] = index
    return _spend_rest(options, chosen, budget - cost)


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


def uniform(options: Options, budget: float) -> dict[str, int]:
    """One ratio for every layer: each takes its most accurate option that costs at most that share of its dense cost.

    >>> uniform({"a": [Option(10, 0.0), Option(5, 0.1)], "b": [Option(10, 0.0), Option(5, 0.5)]}, 15)
    {'a': 1, 'b': 1}

    :param options: for each layer its options, the first of which keeps it dense.
    :param budget: what all layers together may cost.
    :return: the index of the option taken for each layer.
    :raises BudgetError: where even the cheapest options cost more.
    """
    _check_reachable(options, budget)

    def at(ratio: float) -> dict[str, int]:
        chosen = {}
        for name, of_layer in options.items():
            cheapest = min(option.cost for option in of_layer)
            limit = max(ratio * of_layer[0].cost, cheapest)
            affordable = [index for index, option in enumerate(of_layer) if option.cost <= limit]
            chosen[name] = min(affordable, key=lambda index: (of_layer[index].error, of_layer[index].cost))
        return chosen

    ratios = sorted({option.cost / of_layer[0].cost for of_layer in options.values() for option in of_layer} | {0.0})
    return at(_largest(ratios, lambda ratio: _total(options, at(ratio)) <= budget))


def cheapest_within(options: Options, error: float) -> dict[str, int]:
    """The cheapest option of each layer whose relative error is within a bound.

    >>> cheapest_within({"a": [Option(10, 0.0), Option(5, 0.1), Option(2, 0.6)]}, 0.2)
    {'a': 1}

    :param options: for each layer its options, the first of which keeps it dense.
    :param error: the largest relative error allowed.
    """
    return {
        name: min((i for i, option in enumerate(of_layer) if option.error <= error), key=lambda i: of_layer[i].cost)
        for name, of_layer in options.items()
    }


def _largest(values: Sequence[float], accepts: Callable[[float], bool]) -> float:
    """The last of ascending values that is accepted, by bisection; the first one is known to be."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if accepts(values[middle]) else (low, middle)
    return values[low]


def _spend_rest(options: Options, chosen: dict[str, int], rest: float) -> dict[str, int]:
    """Take the change of one layer that lowers the loss most per unit of cost and still fits, again and again."""
    chosen = dict(chosen)
    while True:
        best, gain = None, 0.0
        for name, of_layer in options.items():
            now = of_layer[chosen[name]]
            for index, option in enumerate(of_layer):
                extra, saved = option.cost - now.cost, now.loss - option.loss
                if extra <= rest and saved > 0 and saved > gain * max(extra, 1e-12 * of_layer[0].cost):
                    best, gain = (name, index, extra), saved / max(extra, 1e-12 * of_layer[0].cost)
        if best is None:
            return chosen
        name, index, extra = best
        chosen[name] = index
        rest -= extra


def _slope(options: Sequence[Option], here: int, there: int) -> float:
    """Loss added for each unit of cost saved."""
    return (options[there].loss - options[here].loss) / (options[here].cost - options[there].cost)


def _total(options: Options, chosen: Mapping[str, int]) -> float:
    return sum(options[name][index].cost for name, index in chosen.items())


def _check_reachable(options: Options, budget: float) -> None:
    least = sum(min(option.cost for option in of_layer) for of_layer in options.values())
    if least > budget:
        msg = (
            f"The budget leaves {max(budget, 0):.4g} for the layers that can be compressed, but at the lowest ranks "
            f"they still cost {least:.4g}. Raise the budget, allow more decomposers or lower rank_multiple."
        )
        raise BudgetError(msg)
