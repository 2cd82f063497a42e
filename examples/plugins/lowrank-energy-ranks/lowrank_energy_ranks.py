# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""One share of energy for every layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lowrank_hooks import Option, RankPolicyRecord, hookimpl


def allocate(options: Mapping[str, Sequence[Option]], budget: float) -> dict[str, int]:
    """The largest share of energy that all layers can keep under the budget, each at its least cost.

    >>> allocate({"a": [Option(10, 0.0), Option(5, 0.3)], "b": [Option(10, 0.0), Option(5, 0.1)]}, 15)
    {'a': 0, 'b': 1}

    :param options: for each layer its options, the first of which keeps it dense.
    :param budget: what all layers together may cost.
    :return: the index of the option taken for each layer.
    :raises ValueError: where even the cheapest options cost more.
    """
    for error in sorted({option.error for of_layer in options.values() for option in of_layer}):
        chosen = {name: _cheapest(of_layer, error) for name, of_layer in options.items()}
        if sum(options[name][index].cost for name, index in chosen.items()) <= budget:
            return chosen
    if not options:
        return {}
    least = sum(min(option.cost for option in of_layer) for of_layer in options.values())
    msg = f"The budget leaves {budget:.4g} for the layers, but at the lowest ranks they still cost {least:.4g}."
    raise ValueError(msg)


def _cheapest(options: Sequence[Option], error: float) -> int:
    return min((i for i, option in enumerate(options) if option.error <= error), key=lambda i: options[i].cost)


@hookimpl
def lowrank_rank_policies() -> Iterator[RankPolicyRecord]:
    """Offer the policy."""
    yield RankPolicyRecord("equal-energy", allocate, "the same share of energy kept in every layer")
