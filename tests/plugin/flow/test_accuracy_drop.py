# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The budget accuracy_drop, on a network trained on handwritten digits."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
from common import digits
from torch import nn

import lowrank_plugin
from lowrank_plugin.errors import BudgetError, ConfigurationError, EvaluationError

ALLOWED = 0.03


class Small(nn.Module):
    """Three convolutions, so that training takes a few seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, 2, 1), nn.Conv2d(32, 64, 3, 2, 1)
        self.conv3, self.head = nn.Conv2d(64, 64, 3, padding=1), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = torch.relu(conv(x))
        return self.head(x.mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def task():
    """A trained network, calibration images, and the images and classes of the test."""
    training, test = digits.datasets()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(12):
            for chosen in torch.randperm(len(training)).split(64):
                images, labels = (tensor[chosen] for tensor in training.tensors)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
    return model.train(), list(training.tensors[0][:128].split(32)), *test.tensors


class Judge:
    """Top-1; keeps the number of weights and the quality of all networks it saw, and fails when it is told to."""

    def __init__(self, images, labels, failing=None, answer=None):
        self.images, self.labels, self.failing, self.answer, self.seen = images, labels, failing, answer, []

    def __call__(self, model):
        assert not model.training
        assert not torch.is_grad_enabled()
        if len(self.seen) == self.failing:
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer
        value = float((model(self.images).argmax(1) == self.labels).float().mean())
        self.seen.append((sum(parameter.numel() for parameter in model.parameters()), value))
        with torch.no_grad():
            model.head.weight.zero_()  # whatever is done to the model must not matter
        return value


def top1(model, images, labels):
    with torch.no_grad():
        return float((copy.deepcopy(model).eval()(images).argmax(1) == labels).float().mean())


@pytest.fixture
def untouched(task):
    before, training = copy.deepcopy(task[0].state_dict()), [module.training for module in task[0].modules()]
    yield task
    assert all(torch.equal(before[key], value) for key, value in task[0].state_dict().items())
    assert [module.training for module in task[0].modules()] == training


def settings(**other):
    return {"budget": {"accuracy_drop": ALLOWED}, "rank_multiple": 1, **other}


def test_the_smallest_network_within_the_drop(untouched, caplog):
    model, batches, images, labels = untouched
    judge = Judge(images, labels)
    with caplog.at_level(logging.INFO, "lowrank_plugin"):
        small = lowrank_plugin.decompose(model, batches, validation_fn=judge, **settings())
    original, measured = top1(model, images, labels), top1(small, images, labels)
    assert original > 0.9
    assert original - measured <= ALLOWED
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    told = lowrank_plugin.report(small).to_dict()["accuracy"]
    assert told["original"] == original
    assert told["chosen"]["value"] == measured
    assert [each["value"] for each in told["evaluations"]] == [value for _, value in judge.seen[1:]]
    assert caplog.text.count("Evaluation") == len(told["evaluations"]) <= 6
    # every network that was smaller lost too much, and the next smaller one was tried
    smaller = [each for each in told["evaluations"] if each["macs"] < told["chosen"]["macs"]]
    assert smaller
    assert all(each["drop"] > ALLOWED for each in smaller)
    assert told["chosen"]["macs"] - max(each["macs"] for each in smaller) < 0.06


def test_the_plan_is_applied_without_the_function(untouched):
    model, batches, images, labels = untouched
    plan = lowrank_plugin.plan(model, batches, validation_fn=Judge(images, labels), **settings())
    assert json.loads(json.dumps(plan)) == plan
    small = lowrank_plugin.apply(model, plan, batches)
    assert top1(small, images, labels) == plan["accuracy"]["chosen"]["value"]
    assert lowrank_plugin.report(small).to_dict()["accuracy"] == plan["accuracy"]


def test_inplace_gives_the_same_network(task):
    model, batches, images, labels = task
    expected = lowrank_plugin.decompose(model, batches, validation_fn=Judge(images, labels), **settings())
    mine = copy.deepcopy(model)
    same = lowrank_plugin.decompose(mine, batches, validation_fn=Judge(images, labels), inplace=True, **settings())
    assert same is mine
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in expected.state_dict().items())


def test_nothing_good_enough_leaves_all_layers_dense(untouched, caplog):
    model, batches, _, _ = untouched
    dense = sum(parameter.numel() for parameter in model.parameters())
    same = lowrank_plugin.decompose(
        model,
        batches,
        validation_fn=lambda each: float(sum(p.numel() for p in each.parameters()) == dense),
        **settings(),
    )
    assert "all layers stay dense" in caplog.text
    record = lowrank_plugin.report(same).to_dict()
    assert record["accuracy"]["chosen"] is None
    assert {entry["decomposer"] for entry in record["layers"].values()} == {"dense"}
    assert "within the accuracy drop" in record["layers"]["conv2"]["status"]


def test_ranks_by_hand_that_cost_too_much(untouched):
    model, batches, images, labels = untouched
    with pytest.raises(BudgetError, match="ranks given by hand alone lower the quality by"):
        lowrank_plugin.decompose(
            model, batches, validation_fn=Judge(images, labels), **settings(ranks={"conv2": 1}, decomposers=["svd"])
        )


FAILURES = [
    pytest.param(KeyError("labels"), "it raised KeyError: 'labels'", id="raises"),
    pytest.param(float("nan"), "it returned nan, which is not a finite number", id="nan"),
    pytest.param(None, "it returned None, which is not a number", id="none"),
    pytest.param("0.9", "it returned '0.9', which is not a finite number", id="text"),
]


@pytest.mark.parametrize(("answer", "message"), FAILURES)
def test_a_failure_on_the_original(untouched, answer, message):
    model, batches, images, labels = untouched
    with pytest.raises(EvaluationError, match=f"failed on the original: {message}") as caught:
        lowrank_plugin.decompose(
            model, batches, validation_fn=Judge(images, labels, failing=0, answer=answer), **settings()
        )
    assert caught.value.compressed is None
    assert caught.value.__cause__ is answer or not isinstance(answer, Exception)


def test_a_failure_on_the_way_keeps_the_best_network(untouched):
    model, batches, images, labels = untouched
    judge = Judge(images, labels, failing=4, answer=OSError("disk"))
    with pytest.raises(
        EvaluationError, match=r"network 4 of the search: it raised OSError: disk.*compressed"
    ) as caught:
        lowrank_plugin.decompose(model, batches, validation_fn=judge, **settings())
    assert isinstance(caught.value.__cause__, OSError)
    best = caught.value.plan["accuracy"]["chosen"]
    assert top1(caught.value.compressed, images, labels) == best["value"] >= judge.seen[0][1] - ALLOWED
    assert len(caught.value.plan["accuracy"]["evaluations"]) == 3
    again = lowrank_plugin.apply(model, caught.value.plan, batches)
    assert top1(again, images, labels) == best["value"]


@pytest.mark.parametrize(
    ("section", "function", "message"),
    [
        ({"budget": {"accuracy_drop": 0.1}}, None, "needs a validation_fn"),
        ({"budget": {"accuracy_drop": 0.1}}, 0.5, "needs a validation_fn.*Got 0.5"),
        ({"budget": {"accuracy_drop": -1}}, len, "number from 0, in the units of validation_fn"),
        ({"budget": {"macs": 0.5}}, len, "makes no use of it"),
    ],
    ids=["missing", "not callable", "negative", "superfluous"],
)
def test_bad_settings(untouched, section, function, message):
    with pytest.raises(ConfigurationError, match=message):
        lowrank_plugin.plan(untouched[0], untouched[1], validation_fn=function, **section)
