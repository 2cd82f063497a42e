# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The allocation against brute force."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_hooks import Option
from lowrank_plugin.errors import BudgetError
from lowrank_plugin.policies import cheapest_within, lagrangian, lower_hull, uniform


@st.composite
def problems(draw):
    """Up to four layers of up to five options, the first one dense."""
    options = {}
    for layer in range(draw(st.integers(1, 4))):
        dense = draw(st.integers(10, 100))
        weight = draw(st.floats(0.1, 10))
        points = draw(st.lists(st.tuples(st.integers(1, dense), st.floats(0.001, 1)), max_size=4))
        options[f"layer{layer}"] = [
            Option(dense, 0.0, weight),
            *(Option(cost, error, weight) for cost, error in points),
        ]
    return options, draw(st.floats(0.05, 1))


def loss(options, chosen):
    return sum(options[name][index].loss for name, index in chosen.items())


def cost(options, chosen):
    return sum(options[name][index].cost for name, index in chosen.items())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(problems())
def test_lagrangian_is_within_one_step_of_the_optimum(case):
    options, ratio = case
    budget = ratio * sum(of_layer[0].cost for of_layer in options.values())
    best = None
    for indices in itertools.product(*(range(len(of_layer)) for of_layer in options.values())):
        chosen = dict(zip(options, indices, strict=True))
        if cost(options, chosen) <= budget and (best is None or loss(options, chosen) < best):
            best = loss(options, chosen)
    if best is None:
        with pytest.raises(BudgetError):
            lagrangian(options, budget)
        return
    chosen = lagrangian(options, budget)
    assert cost(options, chosen) <= budget * (1 + 1e-12)
    steps = [
        of_layer[there].loss - of_layer[here].loss
        for of_layer in options.values()
        for here, there in itertools.pairwise(lower_hull(of_layer))
    ]
    assert best - 1e-9 <= loss(options, chosen) <= best + max(steps, default=0) + 1e-9


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problems())
def test_uniform_meets_the_budget_with_one_ratio(case):
    options, ratio = case
    budget = ratio * sum(of_layer[0].cost for of_layer in options.values())
    try:
        chosen = uniform(options, budget)
    except BudgetError:
        assert sum(min(option.cost for option in of_layer) for of_layer in options.values()) > budget
        return
    assert cost(options, chosen) <= budget * (1 + 1e-12)


def test_weights_move_the_budget_to_the_layer_that_matters():
    def layer(weight):
        return [Option(10, 0.0, weight), Option(5, 0.1, weight)]

    assert lagrangian({"a": layer(1.0), "b": layer(100.0)}, 15) == {"a": 1, "b": 0}
    assert lagrangian({"a": layer(100.0), "b": layer(1.0)}, 15) == {"a": 0, "b": 1}


def test_error_bound_takes_the_cheapest_within():
    options = {"a": [Option(10, 0.0), Option(9, 0.05), Option(3, 0.1), Option(1, 0.5)]}
    assert [cheapest_within(options, bound)["a"] for bound in (0.01, 0.07, 0.1, 0.9)] == [0, 1, 2, 3]


def test_unreachable_budget_names_the_least_cost():
    with pytest.raises(BudgetError, match="they still cost 4"):
        lagrangian({"a": [Option(10, 0.0), Option(4, 0.5)]}, 3)
