# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The built-in rank policies: how a budget is shared among the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lowrank_hooks import Option
from lowrank_plugin.ranks.knapsack import Options, check_reachable, relax, solve, total_cost, total_loss

_TINY = 1e-9
"""Least share of energy, and least noise level, that is told from none."""


def lagrangian(options: Options, budget: float) -> dict[str, int]:
    """Minimise the sum of expected losses, "keep dense" included, by :func:`lowrank_plugin.ranks.knapsack.solve`.

    >>> options = {"a": [Option(10, 0.0), Option(5, 0.1)], "b": [Option(10, 0.0), Option(5, 0.5)]}
    >>> lagrangian(options, 15)
    {'a': 1, 'b': 0}

    :param options: for each layer its options, the first of which keeps it dense.
    :param budget: what all layers together may cost.
    :return: the index of the option taken for each layer.
    :raises BudgetError: where even the cheapest options cost more.
    """
    return solve(options, budget)


def zhang(options: Options, budget: float) -> dict[str, int]:
    """Maximise the product of the energies that the layers retain, 1 - error^2 each ([1]).

    [1] drops, again and again, the eigenvalue with the least relative loss of energy per unit of cost. The logarithm
    of the product is a sum, so here it is the same knapsack as that of :func:`lagrangian` with another loss.

    [1] Zhang, Zou, He and Sun, "Accelerating Very Deep Convolutional Networks for Classification and Detection",
    TPAMI 38(10), 2016, arXiv:1505.06798.

    >>> zhang({"a": [Option(10, 0.0), Option(5, 0.1)], "b": [Option(10, 0.0), Option(5, 0.5)]}, 15)
    {'a': 1, 'b': 0}

    :param options: for each layer its options, the first of which keeps it dense; their weights do not count.
    :param budget: what all layers together may cost.
    :return: the index of the option taken for each layer.
    :raises BudgetError: where even the cheapest options cost more.
    """

    def logarithmic(option: Option) -> Option:
        return Option(option.cost, math.sqrt(-math.log(max(1 - option.error**2, _TINY))))

    return solve({name: [logarithmic(option) for option in of_layer] for name, of_layer in options.items()}, budget)


def energy(options: Options, budget: float) -> dict[str, int]:
    """One share of energy for every layer: the least bound on all relative errors with which the budget is met.

    Each layer takes its cheapest option within the bound, so that the largest relative error is minimised, as in
    [1].

    [1] Liebenwein et al., "Compressing Neural Networks: Towards Determining the Optimal Layer-wise Decomposition",
    NeurIPS 2021, arXiv:2107.11442.

    >>> energy({"a": [Option(10, 0.0), Option(5, 0.3)], "b": [Option(10, 0.0), Option(5, 0.1)]}, 15)
    {'a': 0, 'b': 1}

    :param options: for each layer its options, the first of which keeps it dense; their weights do not count.
    :param budget: what all layers together may cost.
    :return: the index of the option taken for each layer.
    :raises BudgetError: where even the cheapest options cost more.
    """
    check_reachable(options, budget)
    bounds = sorted({option.error for of_layer in options.values() for option in of_layer}, reverse=True)
    if not bounds:
        return {}
    return cheapest_within(
        options, _last(bounds, lambda bound: total_cost(options, cheapest_within(options, bound)) <= budget)
    )


def evbmf(options: Options, budget: float) -> dict[str, int]:
    """No layer keeps what is noise: each takes its cheapest option whose error is within its noise level.

    The noise levels come from :func:`lowrank_plugin.solvers.noise.noise_level`, so with a budget of 1 the choice has no
    parameter. Where a smaller budget requires it, all levels are raised by one factor, the least that meets it.

    >>> options = {"a": [Option(10, 0.0, insight=0.2), Option(5, 0.1, insight=0.2), Option(3, 0.3, insight=0.2)]}
    >>> evbmf(options, 10), evbmf(options, 4)
    ({'a': 1}, {'a': 2})

    :param options: for each layer its options, the first of which keeps it dense; their insight is the noise level.
    :param budget: what all layers together may cost.
    :return: the index of the option taken for each layer.
    :raises BudgetError: where even the cheapest options cost more.
    """

    def in_noise(option: Option) -> Option:
        return replace(option, error=max(option.error / max(option.insight, _TINY), 1.0))

    return energy({name: [in_noise(option) for option in of_layer] for name, of_layer in options.items()}, budget)


def uniform(options: Options, budget: float) -> dict[str, int]:
    """One ratio for every layer: each takes its most accurate option that costs at most that share of its dense cost.

    >>> uniform({"a": [Option(10, 0.0), Option(5, 0.1)], "b": [Option(10, 0.0), Option(5, 0.5)]}, 15)
    {'a': 1, 'b': 1}

    :param options: for each layer its options, the first of which keeps it dense.
    :param budget: what all layers together may cost.
    :return: the index of the option taken for each layer.
    :raises BudgetError: where even the cheapest options cost more.
    """
    check_reachable(options, budget)

    def at(ratio: float) -> dict[str, int]:
        chosen = {}
        for name, of_layer in options.items():
            cheapest = min(option.cost for option in of_layer)
            limit = max(ratio * of_layer[0].cost, cheapest)
            affordable = [index for index, option in enumerate(of_layer) if option.cost <= limit]
            chosen[name] = min(affordable, key=lambda index: (of_layer[index].error, of_layer[index].cost))
        return chosen

    # where a layer costs nothing, any ratio affords all of it
    ratios = {
        option.cost / of_layer[0].cost for of_layer in options.values() for option in of_layer if of_layer[0].cost > 0
    }
    return at(_last(sorted(ratios | {0.0}), lambda ratio: total_cost(options, at(ratio)) <= budget))


def cheapest_within(options: Options, error: float) -> dict[str, int]:
    """The cheapest option of each layer whose relative error is within a bound.

    >>> cheapest_within({"a": [Option(10, 0.0), Option(5, 0.1), Option(2, 0.6)]}, 0.2)
    {'a': 1}

    :param options: for each layer its options, the first of which keeps it dense.
    :param error: the largest relative error allowed.
    """
    return {
        name: min(
            (index for index, option in enumerate(of_layer) if option.error <= error),
            key=lambda index: (of_layer[index].cost, of_layer[index].error),
        )
        for name, of_layer in options.items()
    }


def assess(options: Options, chosen: Mapping[str, int], budget: float | None) -> dict[str, float]:
    """How good a choice is: its expected loss, and the least that any choice under the budget could have.

    >>> options = {"a": [Option(10, 0.0), Option(4, 0.1)], "b": [Option(10, 0.0), Option(5, 0.5)]}
    >>> {key: round(value, 4) for key, value in assess(options, {"a": 1, "b": 0}, 17).items()}
    {'predicted_loss': 0.01, 'lower_bound': 0.005, 'gap': 0.005}

    :param options: for each layer its options, the first of which keeps it dense.
    :param chosen: the index of the option taken for each layer.
    :param budget: what all layers together might cost; None compares with choices that cost no more than this one.
    :return: ``predicted_loss``, ``lower_bound`` and their difference, ``gap``; in the unit of the weights.
    """
    loss = total_loss(options, chosen)
    bound = min(relax(options, total_cost(options, chosen) if budget is None else budget).bound, loss)
    return {"predicted_loss": loss, "lower_bound": bound, "gap": loss - bound}


def _last(values: Sequence[float], accepts: Callable[[float], bool]) -> float:
    """The last value that is accepted, by bisection; the first one is known to be, and after the last one none is."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if accepts(values[middle]) else (low, middle)
    return values[low]
