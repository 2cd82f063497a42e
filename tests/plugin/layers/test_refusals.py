# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Settings, data and plans that cannot be used: one clear error, and the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lowrank_plugin
from lowrank_plugin.errors import BudgetError, CalibrationError, ConfigurationError, PlanError

HALF = {"budget": {"macs": 0.5}, "rank_multiple": 2}


BAD = [
    pytest.param({"budgt": {"macs": 0.5}}, ConfigurationError, "Unknown key 'budgt'.*Did you mean 'budget'", id="typo"),
    pytest.param({"budget": {"macs": 1.5}}, ConfigurationError, "1.5.*above 0 and at most 1", id="above 1"),
    pytest.param({"budget": {"macs": 0}}, ConfigurationError, "above 0 and at most 1", id="zero"),
    pytest.param({"budget": {"mac": 0.5}}, ConfigurationError, "cost model 'mac'.*Did you mean 'macs'", id="unit"),
    pytest.param({}, ConfigurationError, "Nothing to do", id="nothing"),
    pytest.param({**HALF, "decomposers": ["tuker2"]}, ConfigurationError, "Did you mean 'tucker2'", id="decomposer"),
    pytest.param({**HALF, "policy": "best"}, ConfigurationError, "Unknown rank policy 'best'", id="policy"),
    pytest.param({**HALF, "norm": "L2"}, ConfigurationError, "'L2'.*covariance", id="norm"),
    pytest.param({**HALF, "stability": {"slack": -1}}, ConfigurationError, "stability", id="slack"),
    pytest.param({"budget": {"macs": 0.01}}, BudgetError, "cannot be met; the least here is", id="budget too small"),
    pytest.param(
        {"budget": {"macs": 0.1}, "ignored_scopes": ["3", "0"]},
        BudgetError,
        "The largest layer left alone is '3.conv2': in the ignored scopes",
        id="most is ignored",
    ),
    pytest.param({"ranks": {"2": [1, 2, 3, 4]}}, ConfigurationError, "No decomposer takes rank", id="rank length"),
    pytest.param({**HALF, "device": "cuda:99"}, ConfigurationError, "device 'cuda:99' cannot be used", id="device"),
    pytest.param({**HALF, "device": "gpu"}, ConfigurationError, "device 'gpu' cannot be used", id="device name"),
    pytest.param({"ranks": {"2": 0}}, ConfigurationError, "whole number from 1", id="rank zero"),
]


@pytest.mark.parametrize(("section", "error", "message"), BAD)
def test_bad_settings(untouched, images, section, error, message):
    with pytest.raises(error, match=message):
        lowrank_plugin.decompose(untouched, images, **section)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "calibration data is empty"),
        ([torch.zeros(2, 3)], r"cannot take a calibration batch with tensors of shapes \[\(2, 3\)\]"),
        (["text"], "Expected a batch to hold at least one torch.Tensor"),
        (None, "Give calibration data or an example_input"),
    ],
    ids=["empty", "wrong shape", "no tensor", "nothing"],
)
def test_bad_data(untouched, batches, message):
    with pytest.raises(CalibrationError, match=message):
        lowrank_plugin.decompose(untouched, batches, **HALF)


def test_norm_without_data(untouched):
    with pytest.raises(ConfigurationError, match="needs calibration data"):
        lowrank_plugin.decompose(untouched, None, example_input=torch.ones(1, 3, 16, 16), norm="covariance", **HALF)


def test_nan_activations_keep_a_layer_dense(images, caplog):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    with torch.no_grad():
        model[1].bias[0] = float("nan")
    small = lowrank_plugin.decompose(model, images, budget={"macs": 0.9}, rank_multiple=1)
    assert lowrank_plugin.report(small).to_dict()["skipped"] == {"2": "its inputs contain NaN or infinity"}
    assert "Layer 2 stays dense" in caplog.text
    with pytest.raises(PlanError, match="inputs contain NaN"):
        lowrank_plugin.decompose(model, images, budget={"macs": 0.9}, rank_multiple=1, on_failure="raise")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda plan: plan["layers"].update(nowhere={"decomposer": "svd", "rank": [2]}), "no such layer"),
        (lambda plan: plan["layers"].update({"2": {"decomposer": "svd"}}), "no rank"),
        (lambda plan: plan["layers"].update({"2": {"decomposer": "svd", "rank": [-1]}}), "-1"),
        (
            lambda plan: plan["layers"].update({"2": {"decomposer": "svd", "rank": [1, 2]}}),
            "cannot be factorised by 'svd'",
        ),
        (lambda plan: plan.update(format=99), "99"),
        (lambda plan: plan.pop("norm"), "norm"),
    ],
    ids=["unknown layer", "no rank", "negative", "rank length", "format", "missing"],
)
def test_bad_plans(untouched, images, edit, message):
    plan = lowrank_plugin.plan(untouched, images, **HALF)
    edit(plan)
    with pytest.raises(PlanError, match=message):
        lowrank_plugin.apply(untouched, plan, images)
