# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The sensitivity, its least value, and the exact update under a bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from solvers.problems import normal, rng
from torch import Tensor

from lowrank_plugin.solvers.cp.sensitivity import (
    Factors,
    bounded_update,
    component_norms,
    congruence,
    rescale,
    sensitivity,
)


def draw(sizes: tuple[int, int, int], rank: int, groups: int = 1, seed: int = 0) -> Factors:
    return Factors(*(normal(groups, n, rank, seed=seed + i) for i, n in enumerate(sizes)))


def test_formula_agrees_with_monte_carlo() -> None:
    factors, sigma, generator = draw((5, 4, 3), 3), 1e-4, rng(9)
    trials = 20_000
    noisy = Factors(
        *(f + sigma * torch.randn(trials, *f.shape[1:], generator=generator, dtype=torch.float64) for f in factors)
    )
    change = (noisy.dense() - factors.dense()).square().sum(dim=(1, 2, 3)).mean() / sigma**2
    assert float(change) == pytest.approx(float(sensitivity(factors)), rel=0.02)


def test_rescaling_keeps_the_kernel_and_attains_the_least_sensitivity() -> None:
    factors = draw((6, 5, 9), 4, groups=2)
    scale = torch.tensor([1e-3, 1.0, 50.0, 7.0], dtype=torch.float64)
    factors = factors._replace(out=factors.out * scale, tap=factors.tap / scale.sqrt())
    even = rescale(factors)
    torch.testing.assert_close(even.dense(), factors.dense())
    # by the inequality of the means, for component norms eta: 3 (T S K)^(1/3) times the sum of eta^(4/3)
    least = 3 * (6 * 5 * 9) ** (1 / 3) * component_norms(factors).pow(4 / 3).sum(dim=1)
    torch.testing.assert_close(sensitivity(even), least)
    assert bool((sensitivity(even) < sensitivity(factors)).all())
    levels = [factor.square().mean(dim=1) for factor in even]
    torch.testing.assert_close(levels[0], levels[1])
    torch.testing.assert_close(levels[0], levels[2])


def test_no_other_scaling_is_less_sensitive() -> None:
    even = rescale(draw((6, 5, 9), 4))
    for seed in range(20):
        a, b = (normal(4, seed=seed + shift).exp() for shift in (0, 50))
        other = Factors(even.out * a, even.inp * b, even.tap / (a * b))
        assert float(sensitivity(other)) >= float(sensitivity(even)) * (1 - 1e-12)


def test_zero_components_stay_zero() -> None:
    factors = draw((3, 4, 5), 2)
    factors.tap[..., 1] = 0
    even = rescale(factors)
    assert bool(torch.isfinite(torch.cat([factor.flatten() for factor in even])).all())
    assert float(even.out[..., 1].abs().max()) == 0
    torch.testing.assert_close(even.dense(), factors.dense())


def test_congruence_of_opposed_components() -> None:
    factors = draw((3, 4, 5), 1)
    opposed = Factors(*(torch.cat([f, f], dim=2) for f in factors))
    opposed.out[..., 1] *= -2
    assert float(congruence(opposed)) == pytest.approx(-1)


def systems(seed: int, decades: float = 0.0, rows: int = 5, rank: int = 3) -> tuple[Tensor, ...]:
    """Kernel [1, rows, 12], mixing [12, rank] with columns spread over decades, weights."""
    kernel, mixing = normal(1, rows, 12, seed=seed), normal(12, rank, seed=seed + 1)
    mixing = mixing * 10 ** (-decades * torch.linspace(0, 1, rank, dtype=torch.float64))
    return kernel, mixing, normal(1, rank, seed=seed + 2).exp()


def error_of(kernel: Tensor, mixing: Tensor, factor: Tensor, rows: Tensor | None = None) -> Tensor:
    squares = (kernel - factor @ mixing.T).square().sum(dim=2)
    return (squares if rows is None else squares * rows).sum(dim=1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    excess=st.floats(1e-6, 0.9),
    decades=st.floats(0, 4),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
    weighted=st.booleans(),
)
def test_update_meets_the_conditions_of_optimality(
    seed: int, excess: float, decades: float, scale: float, weighted: bool
) -> None:
    kernel, mixing, weights = systems(seed, decades)
    kernel = kernel * scale
    rows = normal(1, 5, seed=seed + 3).exp() if weighted else None
    least = error_of(kernel, mixing, kernel @ torch.linalg.pinv(mixing).T, rows)
    energy = error_of(kernel, mixing, torch.zeros(1, 5, 3, dtype=torch.float64), rows)
    bound = least + excess * (energy - least)
    gram, rhs = (mixing.T @ mixing)[None], kernel @ mixing
    factor, multiplier = bounded_update(rhs, gram, weights, energy, bound, rows)
    assert float(error_of(kernel, mixing, factor, rows)) == pytest.approx(float(bound), rel=1e-9)
    row = torch.ones(1, 5, 1, dtype=torch.float64) if rows is None else rows[:, :, None]
    gradient = row * (factor @ gram - rhs) + multiplier * factor * weights[:, None]
    assert float(multiplier) > 0
    assert float(gradient.norm()) <= 1e-8 * float((row * rhs).norm())


@pytest.mark.parametrize("seed", range(4))
def test_update_equals_a_general_optimiser(seed: int) -> None:
    kernel, mixing, weights = systems(seed)
    energy = kernel.square().sum(dim=(1, 2))
    least = error_of(kernel, mixing, kernel @ torch.linalg.pinv(mixing).T)
    bound = 1.1 * least
    ours = bounded_update(kernel @ mixing, (mixing.T @ mixing)[None], weights, energy, bound).factor
    k, z, w, d = kernel[0].numpy(), mixing.numpy(), weights[0].numpy(), float(bound)

    def slack(x: np.ndarray) -> float:
        return d - float(((k - x.reshape(5, 3) @ z.T) ** 2).sum())

    def slope(x: np.ndarray) -> np.ndarray:
        return 2 * ((k - x.reshape(5, 3) @ z.T) @ z).ravel()

    found = minimize(
        lambda x: float((x.reshape(5, 3) ** 2 * w).sum()),
        (k @ np.linalg.pinv(z).T).ravel(),
        jac=lambda x: 2 * (x.reshape(5, 3) * w).ravel(),
        constraints={"type": "ineq", "fun": slack, "jac": slope},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert float((ours.square() * weights[:, None]).sum()) == pytest.approx(found.fun, rel=1e-8)
    np.testing.assert_allclose(ours[0].numpy().ravel(), found.x, rtol=1e-4, atol=1e-6)


def test_bounds_out_of_reach() -> None:
    kernel, mixing, weights = systems(0)
    energy = kernel.square().sum(dim=(1, 2))
    best = kernel @ torch.linalg.pinv(mixing).T
    gram, rhs = (mixing.T @ mixing)[None], kernel @ mixing
    below = bounded_update(rhs, gram, weights, energy, 0.5 * error_of(kernel, mixing, best))
    torch.testing.assert_close(below.factor, best)
    assert float(below.multiplier) == 0
    assert float(bounded_update(rhs, gram, weights, energy, 2 * energy).factor.abs().max()) == 0


def test_groups_are_separate() -> None:
    parts = [systems(seed) for seed in (0, 1)]
    kernel, weights = (torch.cat([p[i] for p in parts]) for i in (0, 2))
    mixing = torch.stack([p[1] for p in parts])
    energy = kernel.square().sum(dim=(1, 2))
    together = bounded_update(kernel @ mixing, mixing.mT @ mixing, weights, energy, 0.8 * energy).factor
    for g in range(2):
        one = slice(g, g + 1)
        alone = bounded_update(
            (kernel @ mixing)[one], (mixing.mT @ mixing)[one], weights[one], energy[one], 0.8 * energy[one]
        ).factor
        torch.testing.assert_close(together[one], alone)
