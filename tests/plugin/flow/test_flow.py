# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""From a model to a compressed one: plans, budgets, and what the replacement keeps."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import torch
from torch import nn

import lowrank_plugin
from lowrank_plugin.errors import BudgetError, LowRankError

HALF = {"budget": {"macs": 0.5}, "rank_multiple": 2}


def macs(model: nn.Module) -> float:
    return lowrank_plugin.report(model).to_dict()["model"]["macs"][1]


def chains(model: nn.Module) -> list[str]:
    layers = lowrank_plugin.report(model).to_dict()["layers"]
    return [name for name, entry in layers.items() if entry["decomposer"] != "dense"]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("unit", ["macs", "parameters"])
@pytest.mark.parametrize("policy", ["lagrangian", "uniform", "energy", "zhang", "evbmf"])
def test_a_budget_is_met_and_counted_right(untouched, images, unit, policy):
    section = {"budget": {unit: 0.6}, "rank_multiple": 1, "policy": policy}
    plan = lowrank_plugin.plan(untouched, images, **section)
    small = lowrank_plugin.decompose(untouched, images, **section)
    model = lowrank_plugin.report(small).to_dict()["model"]
    assert model == plan["model"]
    assert model[unit][1] <= 0.6 * model[unit][0]
    assert model["parameters"] == [parameters(untouched), parameters(small)]
    assert len(chains(small)) > 1
    counter = torch.utils.flop_counter.FlopCounterMode(display=False)
    with counter, torch.no_grad():
        small(images[0])
    assert counter.get_total_flops() / 2 / len(images[0]) == macs(small)


def without_biases() -> nn.Module:
    """Five convolutions whose chains get biases that they have not."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        widths = (3, 16, 16, 16, 16, 16)
        return nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in itertools.pairwise(widths)))


@pytest.mark.parametrize(
    ("section", "added"),
    [
        ({}, True),
        ({"norm": "two-sided", "repair": "none"}, True),
        ({"norm": "frobenius"}, True),
        ({"norm": "frobenius", "repair": "none"}, False),
    ],
    ids=["covariance", "not repaired", "moments only", "no correction"],
)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_biases_that_chains_bring_count(images, section, added, share):
    model = without_biases()
    section = {"budget": {"parameters": share}, "rank_multiple": 1, **section}
    plan = lowrank_plugin.plan(model, images, **section)
    small = lowrank_plugin.decompose(model, images, **section)
    record = lowrank_plugin.report(small).to_dict()
    assert parameters(small) <= share * parameters(model)
    assert plan["model"]["parameters"] == record["model"]["parameters"] == [parameters(model), parameters(small)]
    assert chains(small)
    for name, entry in record["layers"].items():
        mine = parameters(small.get_submodule(name))
        assert entry["parameters"] == plan["layers"][name]["parameters"] == [parameters(model[int(name)]), mine]
        assert entry["bias"] is (added and name in chains(small))
    restored = lowrank_plugin.restore(model, lowrank_plugin.get_state(small))
    restored.load_state_dict(small.state_dict())


def test_statistics_alone_tell_of_biases_too(images):
    model = without_biases()
    seen = lowrank_plugin.collect_statistics(model, images)
    plan = lowrank_plugin.plan(model, statistics=seen, budget={"parameters": 0.5}, rank_multiple=1)
    small = lowrank_plugin.apply(model, plan, statistics=seen)
    assert plan["model"]["parameters"][1] == parameters(small) <= 0.5 * parameters(model)


def test_more_budget_means_less_error(network, images):
    x = torch.cat(images)
    with torch.no_grad():
        errors = [
            float(
                (lowrank_plugin.decompose(network, images, budget={"macs": r}, rank_multiple=1)(x) - network(x)).norm()
            )
            for r in (0.4, 0.7, 0.95)
        ]
    assert errors[0] > errors[1] > errors[2]


def test_covariance_beats_frobenius_on_the_calibration_data(network, images):
    x = torch.cat(images)

    def error(**section):
        small = lowrank_plugin.decompose(network, images, **{**HALF, **section, "repair": "none"})
        with torch.no_grad():
            return float((small(x) - network(x)).norm())

    assert error() < 0.7 * error(norm="frobenius", policy="uniform")


@pytest.mark.parametrize("norm", ["frobenius", "covariance", "two-sided"])
def test_plan_is_json_and_apply_follows_an_edited_one(untouched, images, norm):
    plan = lowrank_plugin.plan(untouched, images, norm=norm, **HALF)
    assert json.loads(json.dumps(plan)) == plan
    plan = json.loads(json.dumps(plan))
    plan["layers"]["1.conv1"] = {"decomposer": "tucker2", "rank": [4, 6]}
    plan["layers"]["1.conv2"] = {"decomposer": "dense"}
    small = lowrank_plugin.apply(untouched, plan, images)
    assert [tuple(stage.weight.shape[:2]) for stage in small[1].conv1] == [(6, 24), (4, 6), (24, 4)]
    assert isinstance(small[1].conv2, nn.Conv2d)


def test_apply_repeats_decompose_bit_for_bit(network, images):
    plan = lowrank_plugin.plan(network, images, **HALF)
    first = lowrank_plugin.decompose(network, images, **HALF).state_dict()
    second = lowrank_plugin.apply(network, plan, images).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_error_budget_bounds_every_layer(network, images):
    plan = lowrank_plugin.plan(network, images, budget={"error": 0.2}, rank_multiple=1)
    assert any(entry["decomposer"] != "dense" for entry in plan["layers"].values())
    assert all(entry["error"] <= 0.2 for entry in plan["layers"].values())


def test_ranks_by_hand_override_the_budget(network, images):
    plan = lowrank_plugin.plan(network, images, ranks={"{re}conv1$": [4, 4]}, **HALF)
    assert [plan["layers"][name]["rank"] for name in ("1.conv1", "3.conv1")] == [[4, 4], [4, 4]]
    assert plan["model"]["macs"][1] <= 0.5 * plan["model"]["macs"][0]


def test_without_data(network):
    x = torch.ones(1, 3, 16, 16)
    small = lowrank_plugin.decompose(network, None, ranks={"2": [16, 8]}, decomposers=["tucker2"], example_input=x)
    assert chains(small) == ["2"]
    assert lowrank_plugin.report(small).to_dict()["norm"] == "frobenius"


def test_inplace_changes_the_model_itself(network, images):
    expected = lowrank_plugin.decompose(network, images, **HALF)
    same = lowrank_plugin.decompose(network, images, inplace=True, **HALF)
    assert same is network
    with torch.no_grad():
        assert torch.equal(network(images[0]), expected(images[0]))


def test_the_model_may_be_a_single_layer():
    small = lowrank_plugin.decompose(nn.Linear(16, 16), [torch.randn(64, 16)], budget={"macs": 0.5}, rank_multiple=1)
    assert isinstance(small, nn.Sequential)
    assert isinstance(lowrank_plugin.to_dense(small), nn.Linear)


def test_to_dense_computes_the_same(network, images):
    small = lowrank_plugin.decompose(network, images, **HALF)
    dense = lowrank_plugin.to_dense(small)
    assert [type(module) for module in dense.modules()] == [type(module) for module in network.modules()]
    with torch.no_grad():
        torch.testing.assert_close(dense(images[0]), small(images[0]), rtol=1e-4, atol=1e-5)
    first = chains(small)[0]
    partly = lowrank_plugin.to_dense(small, first)
    assert not isinstance(partly.get_submodule(first), nn.Sequential)
    assert first not in chains(partly)
    with pytest.raises(LowRankError, match="is not a chain of this model"):
        lowrank_plugin.to_dense(small, "4")
    with pytest.raises(LowRankError, match="carries no record"):
        lowrank_plugin.to_dense(network)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_replacement_keeps_dtype_flags_and_hooks(images, dtype):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)).to(dtype)
    model[0].requires_grad_(False)
    model[1].train(False)
    seen = []
    handle = model[1].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    data = [batch.to(dtype) for batch in images]
    small = lowrank_plugin.decompose(
        model, data, ranks={"1": 4, "0": 3}, decomposers=["svd"], repair="moments", inplace=True
    )
    assert all(parameter.dtype == dtype for parameter in small.parameters())
    assert not any(parameter.requires_grad for parameter in small[0].parameters())
    assert all(parameter.requires_grad for parameter in small[1].parameters())
    assert small[0].training
    assert not any(module.training for module in small[1].modules())
    assert [list(chain.state_dict()) for chain in small] == [["0.weight", "1.weight", "1.bias"]] * 2
    seen.clear()
    with torch.no_grad():
        small(data[0])
    assert len(seen) == 1
    handle.remove()
    with torch.no_grad():
        small(data[0])
    assert len(seen) == 1


def test_rest_of_the_state_dict_is_preserved(network, images):
    small = lowrank_plugin.decompose(network, images, ranks={"2": 8}, decomposers=["svd"])
    before, after = network.state_dict(), small.state_dict()
    assert {key for key in after if key not in before} == {"2.0.weight", "2.1.weight", "2.1.bias"}
    assert all(torch.equal(before[key], after[key]) for key in after if key in before)


def test_a_module_known_by_two_names_stays_one(images):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 3, 3, padding=1)
            self.second = self.first

        def forward(self, x):
            return self.second(self.first(x))

    small = lowrank_plugin.decompose(Tied(), images, ranks={"first": 2}, decomposers=["svd"])
    assert small.first is small.second


def test_moments_match_the_original(network, images):
    small = lowrank_plugin.decompose(network, [torch.cat(images)], **HALF)
    outputs = {}
    for key, model in (("original", network), ("compressed", small)):
        name = chains(small)[-1]
        model.get_submodule(name).register_forward_hook(lambda m, a, out, key=key: outputs.setdefault(key, out))
        with torch.no_grad():
            model(torch.cat(images))
    for statistic in (torch.mean, torch.std):
        wanted, got = (statistic(out.movedim(1, 0).flatten(1), dim=1) for out in outputs.values())
        torch.testing.assert_close(got, wanted, rtol=2e-3, atol=2e-3)


def test_observers_see_every_step(network, images):
    from lowrank_hooks import hookimpl
    from lowrank_plugin.plugins import manager

    events = []

    class Observer:
        @hookimpl
        def lowrank_step(self, event):
            events.append(event)

    observer = Observer()
    manager().register(observer)
    try:
        lowrank_plugin.decompose(network, images, **HALF)
    finally:
        manager().unregister(observer)
    steps = list(dict.fromkeys(event.step for event in events))
    assert steps == ["survey", "collect", "trial", "weigh", "propose", "fit", "repair"]
    assert all(event.total is None or 1 <= event.done <= event.total for event in events)


def test_what_a_model_reports(network, images):
    report = lowrank_plugin.report(lowrank_plugin.decompose(network, images, ignored_scopes="6", **HALF))
    record = report.to_dict()
    assert json.loads(json.dumps(record)) == record
    rows = {line.split("|")[1].strip(): line for line in report.to_str().splitlines() if line.count("|") > 7}
    assert rows.keys() == {"Layer", *record["layers"], "6", "whole model"}
    for name, entry in record["layers"].items():
        cells = [cell.strip() for cell in rows[name].split("|")[2:-1]]
        assert cells[:2] == [entry["decomposer"], "x".join(map(str, entry["rank"]))]
        before, after = entry["macs"]
        assert cells[2].endswith(f"({after / before:.0%})")
        before, after = entry["parameters"]
        assert cells[3].endswith(f"({after / before:.0%})")
        assert cells[4] == ("" if entry["error"] is None else f"{entry['error']:.4f}")
        assert entry["status"].startswith(cells[5])
    assert "Left alone: in the ignored scopes." in rows["6"]


def test_batches_with_labels_and_samples(network, images):
    labelled = [(batch, torch.zeros(len(batch))) for batch in images]
    first = lowrank_plugin.plan(network, labelled, calibration={"samples": 12}, **HALF)
    second = lowrank_plugin.plan(network, [images[0], images[1][:4]], **HALF)
    assert first["layers"] == second["layers"]


def test_layers_kept_dense_say_why():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    plan = lowrank_plugin.plan(model, [torch.randn(256, 64)], budget={"macs": 0.6})
    assert plan["layers"]["2"]["reason"] == "no chain of the competing decomposers would cost less"
    small = lowrank_plugin.apply(model, plan, [torch.randn(256, 64)])
    status = lowrank_plugin.report(small).to_dict()["layers"]["2"]["status"]
    assert status == "Kept dense: no chain of the competing decomposers would cost less."
    by_hand = lowrank_plugin.plan(model, [torch.randn(256, 64)], ranks={"0": 8})
    assert by_hand["layers"]["2"]["reason"] == "no rank was given for it"


def test_a_model_without_gradients_still_gets_a_plan(network, images, caplog):
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        @torch.no_grad()
        def forward(self, x):
            return self.inner(x)

    plan = lowrank_plugin.plan(Detached(), images, **HALF)
    assert "All layers count alike" in caplog.text
    assert plan["model"]["macs"][1] <= 0.5 * plan["model"]["macs"][0]


def test_a_plan_says_how_far_from_the_best_it_can_be(network, images):
    found = {
        policy: lowrank_plugin.plan(network, images, policy=policy, **HALF)["allocation"]
        for policy in ("lagrangian", "uniform")
    }
    assert found["lagrangian"]["lower_bound"] == pytest.approx(found["uniform"]["lower_bound"])
    assert 0 <= found["lagrangian"]["gap"] <= found["uniform"]["gap"]
    within = lowrank_plugin.plan(network, images, budget={"error": 0.2}, rank_multiple=1)["allocation"]
    assert within["gap"] == pytest.approx(within["predicted_loss"] - within["lower_bound"]) and within["gap"] >= 0
    by_hand = lowrank_plugin.plan(network, images, ranks={"2": 4})
    assert by_hand["allocation"] is None
    text = lowrank_plugin.report(lowrank_plugin.decompose(network, images, **HALF)).to_str()
    assert "Expected loss as planned" in text


def test_a_budget_of_one_keeps_all_dense(network, images):
    plan = lowrank_plugin.plan(network, images, budget={"macs": 1.0}, rank_multiple=1)
    assert all(entry["decomposer"] == "dense" for entry in plan["layers"].values())
    assert plan["allocation"] == {"predicted_loss": 0.0, "lower_bound": 0.0, "gap": 0.0}


def test_ranks_by_hand_count_towards_the_least_that_a_budget_can_be(network, images):
    with pytest.raises(BudgetError, match="least here is") as told:
        lowrank_plugin.plan(network, images, budget={"macs": 0.01}, ranks={"2": 8}, rank_multiple=1)
    least = float(re.search(r"least here is (0[.][0-9]+)", str(told.value))[1])
    plan = lowrank_plugin.plan(network, images, budget={"macs": least + 0.001}, ranks={"2": 8}, rank_multiple=1)
    before, after = plan["model"]["macs"]
    assert after == pytest.approx(least * before, abs=0.002 * before)
