# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Norms: what they measure, that they are plain data, and that third parties may have their own."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest
import torch

from lowrank_hooks import NORMS, ErrorNorm, Norm, Problem, SampledNorm
from lowrank_hooks.testing import make_problem
from lowrank_hooks.testing.base import cast
from lowrank_plugin.solvers.svd import Svd


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def moment(*shape: int) -> torch.Tensor:
    return draw(*shape).mT @ draw(*shape)


@pytest.mark.parametrize("two_sided", [False, True])
def test_norm_is_the_change_of_the_output(two_sided):
    weight, inputs = draw(1, 4, 6), draw(50, 6)
    gradient = draw(9, 4)
    norm = Norm((inputs.T @ inputs)[None] / 50, (gradient.T @ gradient)[None] if two_sided else None)
    outputs = inputs @ weight[0].T
    expected = (outputs @ gradient.T if two_sided else outputs).square().sum() / 50
    torch.testing.assert_close(norm.squared(weight)[0], expected)
    assert norm.name == ("two-sided" if two_sided else "covariance")
    torch.testing.assert_close((norm.apply(weight) * weight).sum(), expected)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_a_norm_given_by_vectors_is_that_of_their_covariance(groups, ridge, two_sided):
    weight, vectors = draw(groups, 4, 700), draw(groups, 5, 700)
    gradient = draw(groups, 4, 4) @ draw(groups, 4, 4).mT if two_sided else None
    sampled = SampledNorm(vectors, torch.full((groups,), ridge, dtype=torch.float64), gradient)
    dense = Norm(vectors.mT @ vectors + ridge * torch.eye(700, dtype=torch.float64), gradient)
    assert sampled.name == dense.name
    torch.testing.assert_close(sampled.covariance, dense.covariance)
    torch.testing.assert_close(sampled.apply(weight), dense.apply(weight))
    torch.testing.assert_close(sampled.squared(weight), dense.squared(weight))
    outputs = weight @ dense.covariance @ weight.mT
    for norm in (sampled, dense, sampled.one_sided, dense.one_sided):
        torch.testing.assert_close(norm.gram(weight), outputs)
    assert sampled.one_sided.name == "covariance"
    assert {id(each) for each in sampled.tensors} >= {id(vectors), *([id(gradient)] if two_sided else [])}
    # kernels in float32 take what they need of a norm in float64
    assert sampled.apply(weight.float()).dtype == sampled.squared(weight.float()).dtype == torch.float32
    assert sampled.gram(weight.float()).dtype == torch.float64


@dataclass(frozen=True, eq=False)
class ByChannel(ErrorNorm):
    """A norm of a third party: inputs that do not correlate, given by their variances [G, S*K]."""

    variances: torch.Tensor
    gradient: torch.Tensor | None = None

    @property
    def covariance(self):
        return torch.diag_embed(self.variances)

    @property
    def tensors(self):
        return (self.variances,) if self.gradient is None else (self.variances, self.gradient)

    @property
    def one_sided(self):
        return replace(self, gradient=None)

    def map(self, function):
        return ByChannel(*map(function, self.tensors))

    def apply(self, matrix):
        return Norm(gradient=self.gradient).apply(matrix * self.variances.to(matrix).unsqueeze(-2))

    def squared(self, matrix):
        return (self.apply(matrix) * matrix).sum(dim=(-2, -1)).clamp_min(0)

    def gram(self, matrix):
        seen = matrix.double()
        return (seen * self.variances.double().unsqueeze(-2)) @ seen.mT


ALL = {
    "frobenius": Norm(),
    "covariance": Norm(moment(3, 9, 7)),
    "gradient": Norm(None, moment(3, 9, 4)),
    "two-sided": Norm(moment(3, 9, 7), moment(3, 9, 4)),
    "sampled": SampledNorm(draw(3, 2, 7), torch.tensor([0.1, 0.0, 2.0], dtype=torch.float64)),
    "sampled-two-sided": SampledNorm(draw(3, 2, 7), torch.ones(3, dtype=torch.float64), moment(3, 9, 4)),
    "own": ByChannel(draw(3, 7).square()),
    "own-two-sided": ByChannel(draw(3, 7).square(), moment(3, 9, 4)),
}
every_norm = pytest.mark.parametrize("norm", ALL.values(), ids=ALL)


@every_norm
def test_a_norm_is_replaced_field_by_field(norm):
    gradient = moment(3, 5, 4)
    other = replace(norm, gradient=gradient)
    assert type(other) is type(norm)
    assert other.gradient is gradient
    kept = [field.name for field in fields(norm) if field.name != "gradient"]
    assert kept
    assert all(getattr(other, name) is getattr(norm, name) for name in kept)
    assert {id(tensor) for tensor in norm.tensors} <= {id(getattr(norm, field.name)) for field in fields(norm)}


@every_norm
def test_comparing_norms_gives_a_bool(norm):
    assert norm == norm
    assert (norm == replace(norm)) is False
    assert norm in {norm}


@every_norm
def test_the_kind_says_what_a_norm_is_made_of(norm):
    assert norm.kind is NORMS[norm.name]
    assert norm.weighted == (norm.covariance is not None)
    assert norm.turned == (norm.gradient is not None) == norm.kind.turned
    assert norm.kind.weighted == bool(norm.tensors)
    assert not norm.one_sided.turned
    assert norm.one_sided.weighted == norm.weighted


@every_norm
def test_the_groups_of_a_norm_are_taken_apart_and_repeated(norm):
    weight = draw(3, 4, 7)
    part, twice = norm.part(slice(1, 3)), norm.repeated(2)
    assert type(part) is type(twice) is type(norm)
    torch.testing.assert_close(part.squared(weight[1:]), norm.squared(weight)[1:])
    alone = norm.squared(weight)
    torch.testing.assert_close(twice.squared(torch.cat([weight, 2 * weight])), torch.cat([alone, 4 * alone]))
    torch.testing.assert_close(part.gram(weight[1:]), norm.gram(weight)[1:])


@every_norm
def test_a_norm_is_cast_and_moved_as_it_is(norm):
    single = cast(Problem(draw(3, 4, 7), norm), dtype=torch.float32)
    assert type(single.norm) is type(norm)
    assert {tensor.dtype for tensor in (single.kernel, *single.norm.tensors)} == {torch.float32}
    assert float(single.energy) == pytest.approx(float(norm.squared(draw(3, 4, 7)).sum()), rel=1e-5)
    moved = norm.map(lambda tensor: tensor.to("meta"))
    assert {tensor.device.type for tensor in moved.tensors} <= {"meta"}
    assert len(moved.tensors) == len(norm.tensors)


def test_the_problem_of_few_vectors_stays_one():
    problem = make_problem((), "sampled", groups=2)
    assert isinstance(cast(problem, dtype=torch.float32).norm, SampledNorm)
    assert isinstance(problem.norm.part(slice(0, 1)), SampledNorm)


@pytest.mark.parametrize("name", ["own", "own-two-sided"])
def test_a_norm_of_a_third_party_is_solved_in(name):
    kernel, norm = draw(3, 4, 7), ALL[name]
    asked, dense = Problem(kernel, norm), Problem(kernel, Norm(norm.covariance, norm.gradient))
    for rank in (1, 2, 3):
        mine, wanted = (Svd().fit(problem, (rank,)) for problem in (asked, dense))
        assert asked.relative_error(mine.value) == pytest.approx(dense.relative_error(wanted.value), rel=1e-9)
    errors = [[point.error for point in Svd().curve(problem)] for problem in (asked, dense)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-6, abs=1e-9)
