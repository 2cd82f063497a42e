# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Layers of one shape are solved together, and get what they would get alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lowrank_plugin
from lowrank_hooks import DecomposerRecord, Problem, Status
from lowrank_plugin.errors import PlanError
from lowrank_plugin.plugins import DECOMPOSERS, manager
from lowrank_plugin.ranks.proposals import error_curves
from lowrank_plugin.solvers import batching
from lowrank_plugin.solvers.batching import batches, solutions
from lowrank_plugin.solvers.cpd import Cpd
from lowrank_plugin.solvers.svd import Svd


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=30), st.integers(1, 12))
def test_batches_hold_every_layer_once_alike_and_within_bounds(layers, most):
    kinds = {f"l{place}": kind for place, (kind, _) in enumerate(layers)}
    sizes = {f"l{place}": size for place, (_, size) in enumerate(layers)}
    found = batches(list(kinds), kinds.__getitem__, sizes.__getitem__, most)
    assert Counter(name for batch in found for name in batch) == Counter(list(kinds))
    for batch in found:
        assert len({kinds[name] for name in batch}) == 1
        assert len(batch) == 1 or sum(sizes[name] for name in batch) <= most
    firsts = [list(kinds).index(batch[0]) for batch in found]
    assert firsts == sorted(firsts)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(5)]
    return nn.Sequential(*(each for layer in layers for each in (layer, nn.ReLU())), nn.Conv2d(8, 12, 3)).eval()


@pytest.fixture
def calls(monkeypatch):
    """How many problems came together in each call of the solver."""
    seen = []
    fits = Cpd.fits

    def watched(self, problems, rank):
        seen.append(len(problems))
        return fits(self, problems, rank)

    monkeypatch.setattr(Cpd, "fits", watched)
    return seen


OPTIONS = {"decomposers": ["cpd"], "ranks": {"{re}.*": [6]}, "repair": "none"}


def test_layers_of_one_shape_and_rank_are_fitted_in_one_call(calls):
    images = torch.randn(64, 8, 10, 10)
    lowrank_plugin.decompose(network(), [images], **OPTIONS)
    assert sorted(calls) == [1, 5]


@pytest.mark.parametrize("norm", ["frobenius", "covariance", "two-sided"])
def test_same_network_as_one_layer_at_a_time(monkeypatch, norm):
    images = torch.randn(64, 8, 10, 10)
    together = lowrank_plugin.decompose(network(), [images], norm=norm, **OPTIONS)
    monkeypatch.setattr(batching, "batches", lambda names, kind, size: [[name] for name in names])
    alone = lowrank_plugin.decompose(network(), [images], norm=norm, **OPTIONS)
    torch.testing.assert_close(together(images), alone(images), rtol=1e-4, atol=1e-4)
    reports = [lowrank_plugin.report(model).to_dict()["layers"] for model in (together, alone)]
    for name, layer in reports[0].items():
        ours, theirs = layer["statistics"], reports[1][name]["statistics"]
        assert ours["relative_error"] == pytest.approx(theirs["relative_error"], rel=1e-5)
        assert ours["sensitivity"] == pytest.approx(theirs["sensitivity"], rel=1e-3)
        assert layer["status"] == reports[1][name]["status"]


def test_a_subclass_that_changes_only_the_fit_of_one_problem_is_asked_for_each():
    class Coarse(Cpd):
        def fit(self, problem, rank):
            return super().fit(problem, (1,))

    problems = [Problem(torch.randn(1, 6, 5, 3, 3)) for _ in range(2)]
    assert [solution.value.shapes[0].out_channels for solution in solutions(Coarse(), problems, (4,))] == [1, 1]
    assert [solution.value.shapes[0].out_channels for solution in solutions(Cpd(), problems, (4,))] == [4, 4]


class Picky(Svd):
    """Refuses kernels whose first weight is negative."""

    def curve(self, problem):
        self._check(problem)
        return super().curve(problem)

    def _check(self, problem):
        if problem.kernel.flatten()[0] < 0:
            msg = "negative"
            raise ValueError(msg)


def test_a_refused_layer_leaves_those_of_its_shape_alone(monkeypatch, caplog):
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
    with torch.no_grad():
        for place, sign in enumerate((1, -1, 1)):
            model[place].weight[0, 0] = sign
    problems = [Problem(layer.weight.detach()[None]) for layer in model]
    found = error_curves(problems, [DecomposerRecord("picky", Picky())])
    assert [bool(curves["picky"]) for curves in found] == [True, False, True]
    assert [record.message for record in caplog.records] == ["picky does not compete: negative"]
    fit = Svd.fit

    def picky(self, problem, rank):
        Picky()._check(problem)
        return fit(self, problem, rank)

    monkeypatch.setattr(Svd, "fit", picky)
    with pytest.raises(PlanError, match=r"Layer '1' cannot be factorised by 'svd' at rank .2.: negative"):
        lowrank_plugin.decompose(model, example_input=torch.randn(1, 6), ranks={"{re}.*": [2]}, decomposers=["svd"])


def test_one_bad_problem_does_not_spoil_the_others():
    ours = Cpd()
    kernels = [torch.randn(1, 6, 5, 3, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    kernels[1][0, 0, 0, 0, 0] = float("nan")
    problems = [Problem(kernel) for kernel in (*kernels, torch.zeros_like(kernels[0]))]
    solutions, curves = ours.fits(problems, (4,)), ours.curves(problems)
    assert solutions[1].status is Status.NONFINITE_INPUT
    assert not curves[1]
    assert solutions[3].statistics["relative_error"] == 0
    assert {point.error for point in curves[3]} == {0.0}
    for place in (0, 2):
        alone = ours.fit(problems[place], (4,)).statistics["relative_error"]
        assert solutions[place].statistics["relative_error"] == pytest.approx(alone, rel=1e-4)
        assert curves[place][0].error == pytest.approx(ours.curve(problems[place])[0].error, rel=1e-4)


def test_problems_that_differ_are_refused():
    ours = manager().find(DECOMPOSERS, "cpd").decomposer
    problems = Problem(torch.ones(1, 4, 4, 3, 3)), Problem(torch.ones(1, 4, 4, 3, 3), seed=1)
    with pytest.raises(ValueError, match="one has 0, another 1: solve them apart"):
        ours.fits(problems, (2,))
    with pytest.raises(ValueError, match="no problem"):
        ours.curves([])
