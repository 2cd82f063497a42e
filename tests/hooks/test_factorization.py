# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Chains as plain data: composition against direct convolution, sizes, and lean imports."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from lowrank_hooks import Factorization, KernelShape, Norm, Problem, SampledNorm, Stage, StageShape


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize(
    "stages",
    [
        (Stage(draw(1, 4, 3, 1, 1)), Stage(draw(1, 4, 1, 3, 3), groups=4), Stage(draw(1, 5, 4, 1, 1))),
        (Stage(draw(1, 4, 3, 3, 1)), Stage(draw(1, 5, 4, 1, 3))),
        (Stage(draw(1, 4, 3, 1, 1)), Stage(draw(1, 6, 2, 3, 3), groups=2), Stage(draw(1, 5, 6, 1, 1))),
        (Stage(draw(1, 4, 3, 3, 3)),),
    ],
    ids=["depthwise", "spatial", "grouped", "single"],
)
def test_composition_is_the_composition_of_convolutions(stages):
    x = draw(2, 3, 7, 7)
    expected = x
    for stage in stages:
        expected = F.conv2d(expected, stage.weight[0], groups=stage.groups)
    chain = Factorization(tuple(stages))
    torch.testing.assert_close(F.conv2d(x, chain.to_kernel()[0]), expected)
    assert chain.parameters == sum(stage.weight.numel() for stage in stages)
    assert sum(shape.parameters for shape in chain.shapes) == chain.parameters


@pytest.mark.parametrize("groups", [1, 3])
def test_a_single_stage_is_copied(groups):
    stage = Stage(draw(2, 6, 3, 3), groups=groups)
    kernel = Factorization((stage,)).to_kernel()
    before = stage.weight.clone()
    kernel.zero_()
    assert torch.equal(stage.weight, before)


def test_groups_of_a_layer_are_independent():
    first, second = draw(2, 4, 3, 1, 1), draw(2, 5, 4, 3, 3)
    both = Factorization((Stage(first), Stage(second))).to_kernel()
    for group in range(2):
        alone = Factorization((Stage(first[group : group + 1]), Stage(second[group : group + 1]))).to_kernel()
        torch.testing.assert_close(both[group : group + 1], alone)


def test_sizes():
    assert StageShape(6, 4, (3, 3), groups=2).parameters == 6 * 2 * 9
    assert KernelShape(2, 6, 4, (3, 5)).taps == 15
    assert KernelShape(2, 6, 4).parameters == 48
    assert Stage(draw(2, 6, 2, 3, 3), groups=2).shape == StageShape(6, 4, (3, 3), 2)


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


def test_relative_error_of_a_zero_kernel():
    problem = Problem(torch.zeros(1, 2, 2))
    assert problem.relative_error(Factorization((Stage(torch.zeros(1, 2, 2)),))) == 0
    assert problem.relative_error(Factorization((Stage(torch.ones(1, 2, 2)),))) == 2


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("statement", ["import lowrank_hooks", "import lowrank_plugin"])
def test_imports_are_lean(statement):
    modules = imported_by(statement)
    assert "nncf" not in modules
    assert "tensorly" not in modules
    assert "torchvision" not in modules
    assert "scipy.optimize" not in modules
    assert "pytest" not in modules
    if statement == "import lowrank_hooks":
        assert "lowrank_plugin" not in modules
