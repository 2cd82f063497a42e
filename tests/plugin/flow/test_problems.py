# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The questions about layers: kept within the memory that the plan states, and the same however often they are made."""

from __future__ import annotations

import pytest
import torch
from allocations import allocated

from lowrank_plugin.errors import PlanError
from lowrank_plugin.flow.problems import Problems, look, problem_bytes
from lowrank_plugin.flow.sources import FromData, FromStatistics
from lowrank_plugin.flow.starting import start, summary
from lowrank_plugin.plugins import manager
from lowrank_plugin.settings import Settings
from lowrank_plugin.support.progress import SILENT

ROOMY, TIGHT = 8.0, 2.6e-3


def problems_of(network, images, **section) -> Problems:
    settings = Settings.from_mapping({"budget": {"macs": 0.5}, **section})
    source = FromData(images)
    return look(start(network, source, None, settings, manager(), SILENT), source)


def kept(problems: Problems) -> int:
    return sum(problem_bytes(each) for each in problems._kept.values())


@pytest.mark.parametrize("limit", [ROOMY, TIGHT])
@pytest.mark.parametrize("norm", ["covariance", "two-sided"])
def test_sums_and_kept_problems_are_within_the_stated_peak(network, images, limit, norm):
    problems = problems_of(network, images, norm=norm, calibration={"memory_gb": limit})
    names = list(problems.subject.survey.layers)
    for name in [*names, *names]:
        problems[name]
        assert problems.held + kept(problems) <= problems.memory()["peak"]
    if limit == ROOMY:
        assert len(problems._kept) == len(names)
    else:
        assert problems.memory()["peak"] <= TIGHT * 1e9
        assert len(problems._kept) < len(names)


def test_the_allocator_sees_no_more_than_the_stated_peak(network, images):
    problems = problems_of(network, images)
    names = list(problems.subject.survey.layers)
    made = allocated(lambda: [problems[name] for name in names])
    assert problems.held + made <= problems.memory()["peak"] <= 2 * (problems.held + made)


def test_a_problem_made_again_is_the_same(network, images):
    tight = problems_of(network, images, calibration={"memory_gb": TIGHT})
    roomy = problems_of(network, images)
    for name in (*tight.subject.survey.layers, *tight.subject.survey.layers):
        assert torch.equal(tight[name].kernel, roomy[name].kernel)
        assert torch.equal(tight[name].norm.covariance, roomy[name].norm.covariance)


def test_both_sources_pose_the_same_problems(network, images):
    settings = Settings.from_mapping({"budget": {"macs": 0.5}})
    data = FromData(images)
    subject = start(network, data, None, settings, manager(), SILENT)
    statistics = FromStatistics(summary(subject, data))
    seen, read = look(subject, data), look(subject, statistics)
    for name in subject.survey.layers:
        assert torch.equal(seen[name].norm.covariance, read[name].norm.covariance)


def test_refusals_come_back_as_values(network, images):
    images[1][:] = float("nan")
    problems = problems_of(network, images)
    names = {"0", "1.conv1", "1.conv2", "2", "3.conv1", "3.conv2", "6"}
    assert problems.seen.refusals == dict.fromkeys(names, "its inputs contain NaN or infinity")
    assert not problems.subject.survey.layers
    assert problems.subject.survey.refusals == problems.seen.refusals
    with pytest.raises(PlanError, match="cannot be compressed: its inputs contain NaN"):
        problems_of(network, images, on_failure="raise")
