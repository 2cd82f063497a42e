# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Each check of the conformance kit sees the fault that it is there for."""

from __future__ import annotations

import pytest

from lowrank_hooks import SampledNorm
from lowrank_hooks.testing import DecomposerConformance

from .broken import FAULTS, Deaf, Sound

CHECKS = [name for name in vars(DecomposerConformance) if name.startswith("test_")]
NEEDS_A_DEVICE = {"test_cuda_agrees_with_the_cpu"}


def failed(decomposer: object, check: str) -> list[str]:
    """The problems at which a check fails."""
    kit = type("TestIt", (DecomposerConformance,), {"decomposer": decomposer, "spatial_axes": frozenset({0, 2})})
    names = []
    function = getattr(kit(), check)
    wanted = "case" in getattr(DecomposerConformance, check).__code__.co_varnames[:2]
    for case in kit.cases() if wanted else [None]:
        try:
            function(*([case] if case else []))
        except pytest.skip.Exception:
            continue
        except (AssertionError, pytest.fail.Exception):
            names.append(case.name if case else "")
    return names


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault_is_seen(fault):
    assert failed(fault.decomposer(), fault.check)


@pytest.mark.parametrize("check", CHECKS)
def test_sound_one_passes(check):
    assert not failed(Sound(), check)


def test_only_one_check_sees_that_the_norm_is_ignored():
    assert [check for check in CHECKS if failed(Deaf(), check)] == ["test_norm_is_used_or_refused"]


class Spy(Sound):
    """Keeps what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def fit(self, problem, rank):
        self.asked.append(problem)
        return super().fit(problem, rank)


@pytest.mark.parametrize("check", ["test_float32_agrees_with_float64", "test_groups_are_independent"])
def test_a_norm_of_few_vectors_stays_one_in_other_dtypes_and_groups(check):
    kit = type("TestIt", (DecomposerConformance,), {"decomposer": Spy()})()
    getattr(kit, check)(next(case for case in kit.cases() if case.name == "linear-sampled"))
    norms = [problem.norm for problem in kit.decomposer.asked]
    assert all(isinstance(norm, SampledNorm) for norm in norms)
    assert len({(norm.vectors.dtype, len(norm.vectors)) for norm in norms}) == 2


def test_every_check_has_a_planted_fault():
    assert {fault.check for fault in FAULTS} == set(CHECKS) - NEEDS_A_DEVICE
