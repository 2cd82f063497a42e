# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Degenerate tensors, the bound that tames them, and what rounding then costs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from solvers.problems import CASES, PROBLEMS, Case, covariance, normal, power_law_kernel
from torch import Tensor

from lowrank_hooks import Norm, Problem, Status
from lowrank_plugin.solvers.cp.blocks import Objective
from lowrank_plugin.solvers.cp.diagnosis import chain_factors
from lowrank_plugin.solvers.cp.sensitivity import Factors, component_norms, sensitivity
from lowrank_plugin.solvers.cp.stable import least_sensitive, least_squares, stabilise
from lowrank_plugin.solvers.cp.start import prepare
from lowrank_plugin.solvers.cpd import Cpd


def border_rank(noise: float = 0.01, seed: int = 0) -> Tensor:
    """The W state a.a.b + a.b.a + b.a.a, [1, 6, 6, 6] float64, of rank 3 but a limit of tensors of rank 2."""
    a, b = torch.linalg.qr(normal(6, 2, seed=seed)).Q.T
    state = sum(torch.einsum("i,j,k->ijk", *vectors) for vectors in ((a, a, b), (a, b, a), (b, a, a)))
    assert isinstance(state, Tensor)
    return (state + noise * normal(6, 6, 6, seed=seed + 1))[None]


def plain(kernel: Tensor) -> Objective:
    return Objective(kernel, kernel.square().sum(dim=(1, 2, 3)))


def begin(kernel: Tensor, rank: int, seed: int = 3) -> Factors:
    return Factors(*(normal(kernel.shape[0], n, rank, seed=seed + n + i) for i, n in enumerate(kernel.shape[1:])))


def share(factors: Factors, kernel: Tensor) -> float:
    return float(component_norms(factors).square().sum() / kernel.square().sum())


@dataclass(frozen=True)
class Row:
    """Bands for energy and sensitivity at a slack, wide enough for other draws of the noise."""

    slack: float
    energy: tuple[float, float]
    sensitivity: tuple[float, float]


BORDER = [Row(0.02, (12, 32), (130, 225)), Row(0.1, (7.5, 12), (85, 120)), Row(0.5, (4, 6), (55, 75))]


@pytest.mark.parametrize("seed", [0, 2, 4])
def test_plain_least_squares_diverges_on_the_border_and_slack_tames_it(seed: int) -> None:
    """A noisy W state: energy 242 without slack, 20.0, 9.4 and 4.7 with it; sensitivity 881, then 167 and 101."""
    kernel = border_rank(seed=seed)
    objective = plain(kernel)
    best = least_squares(objective, begin(kernel, 2, seed=3), 3000, 1e-12).state
    assert float((best.error / objective.energy).sqrt()) == pytest.approx(0.0809, rel=0.2)
    total = float(kernel.square().sum())
    diverged = total * share(best.factors, kernel)
    assert diverged > 40
    for row in BORDER:
        state = stabilise(objective, best.factors, best.error, row.slack, 3000, 1e-10).state
        assert float((state.error / best.error).sqrt()) == pytest.approx(1 + row.slack, rel=1e-4)
        assert row.energy[0] < total * share(state.factors, kernel) < row.energy[1]
        assert row.sensitivity[0] < float(sensitivity(state.factors)) < row.sensitivity[1]
        assert total * share(state.factors, kernel) < diverged / 2.5


def test_a_converged_point_leaves_nothing_to_trade_without_slack() -> None:
    kernel = power_law_kernel(1, 6, 5, 9)
    objective = plain(kernel)
    best = least_squares(objective, begin(kernel, 3), 2000, 1e-14).state
    state = least_sensitive(objective, best.factors, best.error, 50, 1e-6).state
    assert float(sensitivity(state.factors)) == pytest.approx(float(sensitivity(best.factors)), rel=1e-2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sensitivity_never_rises_and_the_bound_is_kept(case: Case) -> None:
    prepared = prepare([case.problem])
    objective = prepared.objective
    groups = prepared.kernel.shape[0]
    factors = Factors(*(normal(groups, n, 4, seed=i) for i, n in enumerate(prepared.kernel.shape[1:])))
    first = least_squares(objective, factors, 30, 1e-6)
    assert all(b <= a for a, b in itertools.pairwise(first.errors))
    noise = 8 * torch.finfo(case.problem.kernel.dtype).eps * objective.energy
    bound = 1.1**2 * torch.maximum(first.state.error, noise)
    outcome = least_sensitive(objective, first.state.factors, bound, 30, 1e-6)
    assert all(b <= a for a, b in itertools.pairwise(outcome.errors))
    exact = objective.refit(outcome.state.factors).error
    assert bool((exact <= bound * (1 + 1e-5) + noise).all())
    difference = prepared.kernel.double() - outcome.state.factors.dense()
    turned = Norm(
        None if case.problem.norm.covariance is None else case.problem.norm.covariance.double(),
        None if objective.rows is None else torch.diag_embed(objective.rows),
    )
    measured = turned.squared(difference.flatten(2))
    # Weights of blind outputs are raised a little in the solver, so it may only overestimate.
    torch.testing.assert_close(measured, outcome.state.error, rtol=1e-2, atol=float(8 * noise.max() + 1e-12))


@pytest.mark.parametrize("rows", [False, True], ids=["even", "weighted"])
def test_optimum_satisfies_the_conditions_of_all_three_factors(rows: bool) -> None:
    """At the limit one multiplier makes the Lagrangian stationary in outputs, inputs and taps."""
    kernel = power_law_kernel(1, 5, 4, 9)
    weights = torch.linspace(1, 3, 5, dtype=torch.float64)[None] if rows else None
    energy = kernel.square().sum(dim=(2, 3))
    energy = (energy if weights is None else energy * weights).sum(dim=1)
    objective = Objective(kernel, energy, rows=weights)
    best = least_squares(objective, begin(kernel, 3), 3000, 1e-14).state
    state = stabilise(objective, best.factors, best.error, 0.1, 5000, 1e-13).state
    leaves = [factor.clone().requires_grad_() for factor in state.factors]
    factors = Factors(*leaves)
    squares = (kernel - factors.dense()).square().sum(dim=(2, 3))
    error = (squares if weights is None else squares * weights).sum()
    lagrangian = error + state.multiplier.sum() * sensitivity(factors).sum()
    total = torch.autograd.grad(lagrangian, leaves, retain_graph=True)
    part = torch.autograd.grad(error, leaves)
    for gradient, scale in zip(total, part, strict=True):
        assert float(gradient.norm()) < 2e-3 * float(scale.norm())


def test_covariance_bound_satisfies_the_conditions_too() -> None:
    kernel = power_law_kernel(1, 5, 4, 3, 3)
    problem = Problem(kernel, Norm(covariance(1, 36, decay=0.4)))
    prepared = prepare([problem])
    best = least_squares(prepared.objective, begin(prepared.kernel, 3), 1000, 1e-12).state
    state = stabilise(prepared.objective, best.factors, best.error, 0.1, 1500, 1e-11).state
    leaves = [factor.clone().requires_grad_() for factor in state.factors]
    factors = Factors(*leaves)
    error = problem.norm.squared((prepared.kernel - factors.dense()).flatten(2)).sum()
    lagrangian = error + state.multiplier.sum() * sensitivity(factors).sum()
    total = torch.autograd.grad(lagrangian, leaves, retain_graph=True)
    part = torch.autograd.grad(error, leaves)
    for gradient, scale in zip(total, part, strict=True):
        assert float(gradient.norm()) < 1e-2 * float(scale.norm())


def test_degenerate_plain_fit_says_so_and_a_stable_one_does_not() -> None:
    kernel = border_rank().reshape(1, 6, 6, 6, 1)
    options = {"max_sweeps": 2000, "rtol": 1e-12, "stable_sweeps": 500}
    diverging = Cpd(**options).fit(Problem(kernel, slack=None), (2,))  # type: ignore[arg-type]
    assert diverging.status is Status.DEGENERATE
    assert diverging.statistics["congruence"] < -0.9
    tamed = Cpd(**options).fit(Problem(kernel, slack=0.1), (2,))  # type: ignore[arg-type]
    assert tamed.status is not Status.DEGENERATE
    assert tamed.statistics["component_energy"] < diverging.statistics["component_energy"] / 4


@pytest.mark.parametrize("weighted", [False, True], ids=["frobenius", "covariance"])
def test_less_sensitive_at_equal_error_than_stopping_early(weighted: bool) -> None:
    """The trade is worth more than what plain least squares has along the way at the same error."""
    kernel = power_law_kernel(1, 16, 12, 3, 3)
    norm = Norm(covariance(1, 108, decay=0.5)) if weighted else Norm()
    prepared = prepare([Problem(kernel, norm)])
    state = least_squares(prepared.objective, begin(prepared.kernel, 12), 150, 1e-9).state
    early = least_squares(prepared.objective, begin(prepared.kernel, 12), 60, 1e-9).state
    bound = torch.maximum(early.error, state.error * (1 + 1e-9))
    traded = least_sensitive(prepared.objective, state.factors, bound, 100, 1e-5).state
    assert float(sensitivity(traded.factors)) < 0.8 * float(sensitivity(early.factors))


def test_rounding_error_is_what_the_sensitivity_predicts() -> None:
    """Uniform rounding noise of variance step^2 / 12 on each factor; equal steps give sensitivity times variance."""
    solution = Cpd().fit(Problem(power_law_kernel(1, 32, 24, 3, 3)), (24,))
    assert solution.value is not None
    factors = chain_factors(solution.value)
    steps = [factor.abs().amax() / 127 for factor in factors]
    rounded = Factors(*((factor / step).round() * step for factor, step in zip(factors, steps, strict=True)))
    a, b, c = factors.squares()
    t, s, k = (factor.shape[1] for factor in factors)
    terms = ((t * b * c).sum(), (s * a * c).sum(), (k * a * b).sum())
    predicted = sum(step**2 / 12 * term for step, term in zip(steps, terms, strict=True))
    actual = (rounded.dense() - factors.dense()).square().sum()
    assert float(actual) == pytest.approx(float(predicted), rel=0.25)
    assert float(sum(terms)) == pytest.approx(solution.statistics["sensitivity"], rel=1e-6)


def test_stable_rounds_better_than_plain() -> None:
    kernel = power_law_kernel(1, 32, 24, 3, 3)

    def cost(slack: float | None) -> float:
        value = Cpd().fit(Problem(kernel, slack=slack), (24,)).value
        assert value is not None
        factors = chain_factors(value)
        rounded = Factors(*((f / (f.abs().amax() / 127)).round() * (f.abs().amax() / 127) for f in factors))
        return float((rounded.dense() - factors.dense()).norm() / kernel.norm())

    assert cost(0.02) < 0.7 * cost(None)


def test_zero_slack_is_allowed() -> None:
    problem = replace(PROBLEMS["covariance"], slack=0.0)
    solution = Cpd().fit(problem, (4,))
    assert solution.statistics["relative_error"] <= solution.statistics["best_error"] * (1 + 1e-5)
