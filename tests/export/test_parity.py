# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A compressed network computes the same wherever it runs."""

from __future__ import annotations

import copy
import math
import shutil
from pathlib import Path

import pytest
import torch
from export import table
from export.networks import exported
from export.runtimes import FAILURES, INT8, LOWRANK, RUNTIMES
from torch import Tensor, nn

CASES = [
    pytest.param(name, version, geometry, marks=[pytest.mark.slow] if "compile" in name else [])
    for name, runtime in RUNTIMES.items()
    for version in runtime.versions
    for geometry in runtime.geometries
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("name", "version", "geometry"), CASES)
def test_outputs_are_equal(name: str, version: str, geometry: str, tmp_path: Path) -> None:
    if "compile" in name and not shutil.which("g++") and not shutil.which("clang++"):
        pytest.skip("torch.compile needs a C++ compiler")
    controllers, batch = exported(geometry)
    failure = FAILURES.get((version, name))
    if failure is not None and geometry not in failure.geometries:
        failure = None
    if failure is not None and failure.processor not in processor_flags():
        pytest.skip(f"the failure known here needs a processor with {failure.processor}")
    with torch.no_grad():
        if failure is not None:
            with pytest.raises(failure.error, match=failure.match):
                check(RUNTIMES[name].run(controllers[version], batch, tmp_path), version, geometry)
        else:
            check(RUNTIMES[name].run(controllers[version], batch, tmp_path), version, geometry)


def processor_flags() -> str:
    """What the processor can do, as Linux tells it."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def check(found: Tensor, version: str, geometry: str) -> None:
    """Compare outputs with those of PyTorch."""
    controllers, batch = exported(geometry)
    wanted = controllers[version].model(batch)
    if version == INT8:
        # Where an activation lies half-way between two steps, rounding errors decide which one it becomes. Such a step
        # is twice the largest error of quantization, but rare: the sum stays below what quantization itself costs.
        allowed = float((wanted - controllers[LOWRANK].model(batch)).norm())
        assert float((found - wanted).norm()) <= allowed, "Mismatched outputs"
    else:
        excess = (found - wanted).abs() - rounding_bound(controllers[version].model, batch)
        assert float(excess.max()) <= 0, "Mismatched outputs"


def rounding_bound(model: nn.Module, batch: Tensor) -> Tensor:
    r"""How far float32 results of two orders of summation can be apart, for a network whose layers follow one another.

    An inner product of n terms is known to :math:`\gamma_n |x|^T |y|` with :math:`\gamma_n = n u / (1 - n u)`, and the
    :math:`\gamma` of layers add up ([1], eq. 3.5 and lemma 3.3); ReLU makes no error larger.

    [1] Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, SIAM 2002.
    """
    absolute = copy.deepcopy(model)
    layers = [module for module in absolute.modules() if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)]
    for parameter in absolute.parameters():
        parameter.abs_()
    positions = math.prod(batch.shape[2:])
    terms = sum(layer.weight[0].numel() + 1 for layer in layers) + positions
    unit = terms * torch.finfo(torch.float32).eps / 2
    return 2 * unit / (1 - unit) * absolute(batch.abs())


def test_every_failure_is_of_a_runtime_that_is_tried() -> None:
    assert all(version in RUNTIMES[name].versions for version, name in FAILURES)


def test_the_table_in_the_readme_is_up_to_date() -> None:
    assert table.table() in table.README.read_text(), "run: python tests/export/table.py"
