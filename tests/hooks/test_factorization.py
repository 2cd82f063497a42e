# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Chains as plain data: composition against direct convolution, sizes, and lean imports."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from lowrank_hooks import Factorization, KernelShape, Problem, Stage, StageShape


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
