# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Empirical variational Bayes against known answers and against its free energy, minimised numerically."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from lowrank_hooks import Norm, Problem
from lowrank_plugin.solvers.noise import evbmf_rank, noise_level


def noisy(rows, columns, rank, strength, seed=0):
    """Orthogonal components of equal strength, in units of the noise's largest singular value, plus white noise."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, rank, generator=generator, dtype=torch.float64)).Q
    noise = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return strength * (math.sqrt(rows) + math.sqrt(columns)) * left @ right.mT + noise


def rank_of(matrix):
    return evbmf_rank(torch.linalg.svdvals(matrix).square(), max(matrix.shape))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("shape", [(20, 20), (20, 200), (64, 576)], ids=str)
def test_noise_has_rank_zero(shape, scale):
    assert [rank_of(scale * noisy(*shape, 0, 0.0, seed)) for seed in range(5)] == [0] * 5


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("rank", [1, 5, 12])
@pytest.mark.parametrize("shape", [(30, 40), (32, 288)], ids=str)
def test_components_above_the_noise_are_counted(shape, rank, scale):
    assert [rank_of(scale * noisy(*shape, rank, 6.0, seed)) for seed in range(5)] == [rank] * 5


def test_an_exact_rank_is_recovered():
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (20, 50))
    assert rank_of(left @ right.mT) == 3


def test_degenerate_spectra():
    assert evbmf_rank(torch.ones(1, dtype=torch.float64), 1) == 0
    assert evbmf_rank(torch.ones(7, dtype=torch.float64), 9) == 0
    assert evbmf_rank(torch.zeros(4, dtype=torch.float64), 9) == 0


def component_energy(gamma, rows, columns, variance, optimize):
    """Twice the least free energy that one component adds, over its means, variances and priors ([1], section 2).

    The empirical hyperparameters are put in at their optimum, c_a^2 = a^2 / M + s_a and likewise for b.
    """

    def energy(logarithms):
        a, b, s_a, s_b = np.exp(logarithms)
        prior_a, prior_b = a**2 / columns + s_a, b**2 / rows + s_b
        fit = -2 * a * b * gamma + (a**2 + columns * s_a) * (b**2 + rows * s_b)
        return columns * math.log(prior_a / s_a) + rows * math.log(prior_b / s_b) + fit / variance

    best = 0.0  # of the component that is switched off
    for share in (0.3, 1.0):
        size = math.sqrt(gamma * share)
        begin = np.log([size, size, variance / gamma, variance / gamma])
        found = optimize.minimize(energy, begin, method="L-BFGS-B", bounds=[(-15, 15)] * 4)
        best = min(best, found.fun)
    return best


def test_rank_minimises_the_free_energy():
    """Over the noise variance on a grid, every component by numerical minimisation: nothing of the closed form."""
    optimize = pytest.importorskip("scipy.optimize")
    for (rows, columns), rank in itertools.product([(6, 6), (5, 12)], [1, 2]):
        values = torch.linalg.svdvals(noisy(rows, columns, rank, 1.6, seed=3 * rank + rows)).numpy()
        total = float((values**2).sum())
        best, kept = math.inf, -1
        for variance in np.geomspace(0.2, 1.0, 13) * total / (rows * columns):
            parts = [component_energy(value, rows, columns, variance, optimize) for value in values]
            energy = rows * columns * math.log(variance) + total / variance + sum(parts)
            if energy < best:
                best, kept = energy, sum(part < -1e-6 for part in parts)
        assert evbmf_rank(torch.from_numpy(values).square(), columns) == kept


class TestNoiseLevel:
    """Of kernels whose noise is known."""

    def kernel(self, share):
        generator = torch.Generator().manual_seed(0)
        factors = [torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (32, 24)]
        core = torch.randn(4, 4, 9, generator=generator, dtype=torch.float64)
        clean = torch.einsum("tq,qpk,sp->tsk", factors[0], core, factors[1])
        noise = torch.randn(32, 24, 9, generator=generator, dtype=torch.float64)
        return (clean + share * noise * clean.norm() / noise.norm()).reshape(1, 32, 24, 3, 3)

    @pytest.mark.parametrize("share", [0.05, 0.2])
    def test_it_is_about_the_share_of_the_noise(self, share):
        assert share < noise_level(Problem(self.kernel(share))) < 1.6 * share

    def test_identity_covariance_is_the_plain_norm(self):
        kernel = self.kernel(0.1)
        seen = Problem(kernel, Norm(torch.eye(216, dtype=torch.float64)[None]))
        assert noise_level(seen) == pytest.approx(noise_level(Problem(kernel)), rel=1e-6)

    def test_scale_does_not_count(self):
        kernel = self.kernel(0.1)
        assert noise_level(Problem(1e-12 * kernel)) == pytest.approx(noise_level(Problem(kernel)))

    def test_groups_are_taken_together(self):
        kernel = self.kernel(0.1)
        assert noise_level(Problem(torch.cat([kernel, kernel]))) == pytest.approx(noise_level(Problem(kernel)))

    @pytest.mark.parametrize(
        "shape", [(1, 8, 8), (1, 8, 3, 3, 3), (2, 1, 4, 3, 3), (1, 40, 1, 3, 3), (1, 1, 1)], ids=str
    )
    def test_zero_and_thin_kernels(self, shape):
        assert noise_level(Problem(torch.zeros(shape))) == 0
        assert 0 <= noise_level(Problem(torch.randn(shape, generator=torch.Generator().manual_seed(0)))) <= 1

    def test_a_singular_covariance(self):
        covariance = torch.zeros(1, 216, 216, dtype=torch.float64)
        covariance[0, 0, 0] = 1.0
        assert 0 <= noise_level(Problem(self.kernel(0.1), Norm(covariance))) <= 1
