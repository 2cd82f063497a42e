# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The allocation against brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_hooks import Option
from lowrank_plugin.errors import BudgetError
from lowrank_plugin.ranks.knapsack import lower_hull, relax, total_cost, total_loss
from lowrank_plugin.ranks.policies import assess, cheapest_within, energy, evbmf, lagrangian, uniform, zhang

POLICIES = [lagrangian, uniform, energy, zhang, evbmf]


@st.composite
def problems(draw):
    """Up to four layers of up to five options, the first one dense, and a budget."""
    options = {}
    for layer in range(draw(st.integers(1, 4))):
        dense = draw(st.integers(10, 100))
        weight = draw(st.sampled_from([0.0, 0.1, 1.0, 10.0]))
        noise = draw(st.floats(0, 1))
        points = draw(st.lists(st.tuples(st.integers(0, dense), st.floats(0.001, 1)), max_size=4))
        options[f"layer{layer}"] = [
            Option(dense, 0.0, weight, noise),
            *(Option(cost, error, weight, noise) for cost, error in points),
        ]
    return options, draw(st.floats(0.05, 1)) * sum(of_layer[0].cost for of_layer in options.values())


def affordable(options, budget):
    """Every choice under a budget."""
    for indices in itertools.product(*(range(len(of_layer)) for of_layer in options.values())):
        chosen = dict(zip(options, indices, strict=True))
        if total_cost(options, chosen) <= budget:
            yield chosen


def worst(options, chosen):
    return max(options[name][index].error for name, index in chosen.items())


def retained(options, chosen):
    return math.prod(1 - options[name][index].error ** 2 for name, index in chosen.items())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(problems())
def test_lagrangian_is_optimal_and_its_bound_holds(case):
    options, budget = case
    best = min((total_loss(options, chosen) for chosen in affordable(options, budget)), default=None)
    if best is None:
        with pytest.raises(BudgetError):
            lagrangian(options, budget)
        return
    chosen = lagrangian(options, budget)
    assert total_cost(options, chosen) <= budget
    found = assess(options, chosen, budget)
    assert found["lower_bound"] - 1e-9 <= best <= found["predicted_loss"] == total_loss(options, chosen)
    assert found["predicted_loss"] == pytest.approx(best, abs=1e-9)
    steps = [
        of_layer[there].loss - of_layer[here].loss
        for of_layer in options.values()
        for here, there in itertools.pairwise(lower_hull(of_layer))
    ]
    assert 0 <= found["gap"] <= max(steps, default=0) + 1e-9


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problems())
def test_the_bound_is_the_optimum_of_the_linear_programme(case):
    """With HiGHS as the oracle."""
    scipy = pytest.importorskip("scipy.optimize")
    options, budget = case
    flat = [(name, option) for name, of_layer in options.items() for option in of_layer]
    solved = scipy.linprog(
        [option.loss for _, option in flat],
        A_ub=[[option.cost for _, option in flat]],
        b_ub=[budget],
        A_eq=[[float(name == layer) for name, _ in flat] for layer in options],
        b_eq=[1.0] * len(options),
    )
    if not solved.success:
        with pytest.raises(BudgetError):
            relax(options, budget)
        return
    assert relax(options, budget).bound == pytest.approx(solved.fun, abs=1e-7)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problems())
def test_energy_minimises_the_largest_error(case):
    options, budget = case
    best = min((worst(options, chosen) for chosen in affordable(options, budget)), default=None)
    if best is None:
        with pytest.raises(BudgetError):
            energy(options, budget)
        return
    chosen = energy(options, budget)
    assert total_cost(options, chosen) <= budget
    assert worst(options, chosen) <= best


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problems())
def test_zhang_maximises_the_product_of_energies(case):
    options, budget = case
    best = max((retained(options, chosen) for chosen in affordable(options, budget)), default=None)
    if best is None:
        with pytest.raises(BudgetError):
            zhang(options, budget)
        return
    chosen = zhang(options, budget)
    assert total_cost(options, chosen) <= budget
    assert retained(options, chosen) == pytest.approx(best, abs=1e-8)
    assert retained(options, chosen) >= retained(options, greedily(options, budget)) - 1e-8


def greedily(options, budget):
    """The published greedy scheme: drop what costs the least share of its layer's energy per unit of cost."""
    chosen = dict.fromkeys(options, 0)
    while total_cost(options, chosen) > budget:
        drops = []
        for name, index in chosen.items():
            here = options[name][index]
            for other, option in enumerate(options[name]):
                if option.cost < here.cost:
                    kept = 1 - here.error**2
                    share = (kept - 1 + option.error**2) / kept if kept > 0 else 0.0
                    drops.append((share / (here.cost - option.cost), name, other))
        _, name, index = min(drops)
        chosen[name] = index
    return chosen


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(case=problems())
def test_every_policy_meets_every_budget_that_can_be_met(policy, case):
    options, budget = case
    if sum(min(option.cost for option in of_layer) for of_layer in options.values()) > budget:
        with pytest.raises(BudgetError, match="lowest ranks they still cost"):
            policy(options, budget)
        return
    assert total_cost(options, policy(options, budget)) <= budget * (1 + 1e-12)


@pytest.mark.parametrize("policy", POLICIES)
class TestEdges:
    """One layer, budgets at their ends, equal and free options."""

    def test_no_layers(self, policy):
        assert policy({}, 0.0) == {}

    def test_a_budget_of_all_keeps_what_has_no_noise_dense(self, policy):
        layer = [Option(10, 0.0, insight=0.0), Option(4, 0.1, insight=0.0), Option(2, 0.2, insight=0.0)]
        assert policy({"a": layer, "b": layer}, 20.0) == {"a": 0, "b": 0}

    def test_one_layer(self, policy):
        layer = {"a": [Option(10, 0.0, insight=0.0), Option(4, 0.1, insight=0.0), Option(2, 0.2, insight=0.0)]}
        assert [policy(layer, budget)["a"] for budget in (10, 9.9, 4, 2)] == [0, 1, 1, 2]

    def test_only_dense(self, policy):
        assert policy({"a": [Option(10, 0.0, insight=0.1)]}, 10) == {"a": 0}
        with pytest.raises(BudgetError, match=r"leaves 9 .* still cost 10"):
            policy({"a": [Option(10, 0.0, insight=0.1)]}, 9)

    def test_a_negative_budget_is_told_as_nothing_left(self, policy):
        with pytest.raises(BudgetError, match="leaves 0 "):
            policy({"a": [Option(10, 0.0, insight=0.1)]}, -3)

    def test_equal_options(self, policy):
        equal = [Option(10, 0.0, insight=0.0), *[Option(5, 0.1, insight=0.0)] * 3]
        chosen = policy({"a": equal, "b": equal}, 15)
        assert total_cost({"a": equal, "b": equal}, chosen) in (10, 15)

    def test_a_layer_that_costs_nothing(self, policy):
        options = {"a": [Option(0, 0.0, insight=0.0)], "b": [Option(10, 0.0, insight=0.0), Option(0, 0.9, insight=0.0)]}
        assert policy(options, 10) == {"a": 0, "b": 0}
        assert policy(options, 5) == {"a": 0, "b": 1}


def test_weights_move_the_budget_to_the_layer_that_matters():
    def layer(weight):
        return [Option(10, 0.0, weight), Option(5, 0.1, weight)]

    assert lagrangian({"a": layer(1.0), "b": layer(100.0)}, 15) == {"a": 1, "b": 0}
    assert lagrangian({"a": layer(100.0), "b": layer(1.0)}, 15) == {"a": 0, "b": 1}


def test_many_layers_with_many_options_are_close_to_the_bound():
    generator = torch.Generator().manual_seed(0)
    options = {}
    for layer in range(60):
        cost = torch.rand(1000, generator=generator).sort().values
        error = (1 - cost) ** 2 * (1 + 0.1 * torch.rand(1000, generator=generator))
        weight = float(10 ** torch.randn(1, generator=generator))
        points = zip(cost.tolist(), error.tolist(), strict=True)
        options[str(layer)] = [Option(1.0, 0.0, weight), *(Option(*point, weight) for point in points)]
    chosen = lagrangian(options, 30.0)
    assert total_cost(options, chosen) <= 30.0
    found = assess(options, chosen, 30.0)
    assert found["gap"] <= 1e-4 * found["predicted_loss"]
    step = total_loss(options, relax(options, 30.0).chosen) - found["lower_bound"]
    assert found["gap"] <= 0.1 * step


def test_evbmf_removes_noise_and_no_more_than_the_budget_asks_for():
    layer = [Option(10, 0.0, insight=0.2), Option(5, 0.1, insight=0.2), Option(3, 0.3, insight=0.2)]
    clean = [Option(10, 0.0, insight=0.0), Option(1, 0.01, insight=0.0)]
    assert evbmf({"a": layer, "b": clean}, 20) == {"a": 1, "b": 0}
    assert evbmf({"a": layer, "b": clean}, 13) == {"a": 2, "b": 0}


def test_error_bound_takes_the_cheapest_within():
    options = {"a": [Option(10, 0.0), Option(9, 0.05), Option(3, 0.1), Option(3, 0.2), Option(1, 0.5)]}
    assert [cheapest_within(options, bound)["a"] for bound in (0.01, 0.07, 0.2, 0.9)] == [0, 1, 2, 4]


def test_a_choice_without_a_budget_is_compared_at_its_own_cost():
    options = {"a": [Option(10, 0.0), Option(5, 0.1)], "b": [Option(10, 0.0), Option(5, 0.5)]}
    assert assess(options, {"a": 1, "b": 0}, None)["gap"] == pytest.approx(0)
    assert assess(options, {"a": 0, "b": 1}, None) == pytest.approx(
        {"predicted_loss": 0.25, "lower_bound": 0.01, "gap": 0.24}
    )
