# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The budget latency: what is timed, kept, interpolated and met. Nothing here depends on how long anything takes."""

from __future__ import annotations

import itertools
import json
import logging

import pytest
import torch
from torch import nn

import lowrank_plugin
from lowrank_hooks import CostModelRecord, StageShape, hookimpl
from lowrank_plugin.costs import latency, stand_ins, stopwatch
from lowrank_plugin.costs.counted import macs
from lowrank_plugin.costs.latency import LatencyModel, family, grid, widths, with_widths
from lowrank_plugin.costs.runtimes import PyTorchRuntime, make_runtime
from lowrank_plugin.costs.stopwatch import interleaved
from lowrank_plugin.costs.timings import Timings
from lowrank_plugin.errors import BudgetError, ConfigurationError
from lowrank_plugin.layers.survey import survey
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
from lowrank_plugin.settings import Settings

BACKENDS = [("pytorch", "fp32"), ("openvino", "fp32"), ("openvino", "int8")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of one's own; and short timing, since no test is about the times themselves."""
    monkeypatch.setattr(stopwatch, "NETWORKS_SECONDS", 0.05)
    monkeypatch.setattr(stopwatch, "LEAST_ROUNDS", 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lowrank" / "latency"


class Counting:
    """The time is the number of weights; keeps what it is asked to time."""

    def __init__(self, factor=1.0):
        self.facts, self.timed, self.factor = {"backend": "counting"}, [], factor

    def layers(self, modules, inputs):
        self.timed += modules
        return [self.factor * weights(module) for module in modules]

    def networks(self, networks, example):
        return [self.factor * weights(network) for network in networks]


def weights(module):
    return float(sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1))


def context(model, example=None):
    example = torch.zeros(1, 3, 16, 16) if example is None else example
    found = survey(model, example, Settings(budget={"macs": 0.5}), manager().registered(LAYER_ADAPTERS))
    return stand_ins.cost_context(model, example, found.layers, {})


def tucker(out, inputs, r_out, r_in):
    return StageShape(r_in, inputs, (1, 1)), StageShape(r_out, r_in, (3, 3)), StageShape(out, r_out, (1, 1))


MANY = [tucker(32, 24, a, b) for a, b in itertools.product(range(2, 33, 2), range(2, 25, 2))]


def test_few_measurements_price_many_chains_exactly_where_time_is_bilinear(network):
    runtime = Counting()
    costs = LatencyModel(context(network), runtime).layer("2", [(), *MANY])
    assert len(MANY) == 192
    assert len(runtime.timed) == 17
    assert costs[0] == 32 * 24 * 9
    assert costs[1:] == pytest.approx([sum(stage.parameters for stage in chain) for chain in MANY], rel=1e-9)


def test_times_are_kept_on_disk(network, cache):
    first, second = Counting(), Counting(factor=3.0)
    costs = LatencyModel(context(network), first).layer("2", MANY)
    assert LatencyModel(context(network), second).layer("2", MANY) == costs
    assert second.timed == []
    # what is timed later on a slower machine is brought to scale by the layer itself
    chain = (StageShape(5, 24, (3, 3)), StageShape(32, 5, (1, 1)))
    later = LatencyModel(context(network), second).layer("2", [(), chain])
    assert len(second.timed) == 2
    assert later == pytest.approx([32 * 24 * 9, 24 * 9 * 5 + 32 * 5])
    assert [path.suffix for path in cache.iterdir()] == [".json"]


def test_layers_of_one_geometry_are_timed_once(network):
    runtime = Counting()
    model = LatencyModel(context(network), runtime)
    chains = [(StageShape(r, 24, (3, 3)), StageShape(24, r, (1, 1))) for r in (2, 4)]
    assert model.layer("1.conv2", chains) == model.layer("1.conv2", chains)
    assert len(runtime.timed) == 3


def test_a_layer_called_twice_costs_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x)[..., ::2, ::2])

    runtime = Counting()
    assert LatencyModel(context(Twice()), runtime).layer("conv", [()]) == [2 * 81]
    assert len(runtime.timed) == 2


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"format": 9}',
        '{"format": 1, "milliseconds": {"x": -1}}',
        '{"format": 1, "milliseconds": {"x": NaN}}',
    ],
    ids=["cut off", "list", "format", "negative", "nan"],
)
def test_a_corrupt_cache_is_rebuilt(network, caplog, content):
    runtime = Counting()
    path = Timings(runtime.facts).path
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert LatencyModel(context(network), runtime).layer("2", [()]) == [32 * 24 * 9]
    assert "measured again" in caplog.text
    assert list(json.loads(path.read_text())["milliseconds"].values()) == [32 * 24 * 9]


def test_a_cache_that_cannot_be_written_only_warns(network, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert LatencyModel(context(network), Counting()).layer("2", [()]) == [32 * 24 * 9]
    assert "cannot be kept" in caplog.text


def test_families_and_their_widths():
    cp = (StageShape(4, 16, (1, 1)), StageShape(4, 4, (3, 3), 4), StageShape(8, 4, (1, 1)))
    assert widths(cp) == (4,)
    assert family(cp) == family(with_widths(cp, (6,))) != family(tucker(8, 16, 4, 4))
    assert with_widths(cp, (6,))[1] == StageShape(6, 6, (3, 3), 6)
    assert widths(with_widths(tucker(8, 16, 4, 2), (3, 5))) == (3, 5)
    assert set(grid(MANY[:3]).values()) == set(MANY[:3])


def test_interleaved_times_count_calls_alike():
    calls = []
    times = interleaved([lambda: calls.append(0), lambda: calls.append(1)], seconds=0.0, burst=3)
    assert len(times) == 2
    assert all(time > 0 for time in times)
    assert calls.count(0) == calls.count(1)


@pytest.mark.parametrize(("backend", "precision"), BACKENDS)
def test_real_runtimes_give_positive_times(network, backend, precision):
    if backend == "openvino":
        pytest.importorskip("openvino")
    runtime = make_runtime({"backend": backend, "precision": precision}, network)
    model = LatencyModel(context(network), runtime)
    dense, *chains = model.layer(
        "2", [(), tucker(32, 24, 8, 8), (StageShape(8, 24, (3, 3)), StageShape(32, 8, (1, 1)))]
    )
    assert all(time > 0 for time in (dense, *chains))
    assert [time > 0 for time in model.networks([network, network])] == [True, True]
    assert model.facts()["backend"] == backend
    assert model.facts()["precision"] == precision


@pytest.mark.parametrize("backend", ["pytorch", "openvino"])
def test_networks_with_several_inputs(backend):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(6, 4)

        def forward(self, x, y):
            return self.a(x) + self.b(y)

    if backend == "openvino":
        pytest.importorskip("openvino")
    for example in ((torch.ones(2, 8), torch.ones(2, 6)), {"y": torch.ones(2, 6), "x": torch.ones(2, 8)}):
        model = Sum()
        found = LatencyModel(context(model, example), make_runtime({"backend": backend}, model))
        assert found.networks([model])[0] > 0
        assert all(time > 0 for time in found.layer("b", [(), (StageShape(2, 6), StageShape(4, 2))]))
    assert model.training


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "precision"), BACKENDS)
def test_from_a_budget_to_a_report(untouched, images, backend, precision):
    if backend == "openvino":
        pytest.importorskip("openvino")
    runtime = {"backend": backend, "precision": precision}
    section = {"ranks": {"3.conv1": [8, 8]}, "rank_multiple": 4, "runtime": runtime}
    plan = lowrank_plugin.plan(untouched, images, **section)
    assert json.loads(json.dumps(plan)) == plan
    assert plan["measured_on"]["backend"] == backend
    assert all(time > 0 for entry in plan["layers"].values() for time in entry["latency"])
    small = lowrank_plugin.apply(untouched, plan, images)
    record = lowrank_plugin.report(small).to_dict()
    assert record["model"]["predicted_latency"] == plan["model"]["latency"]
    assert record["layers"]["3.conv1"]["predicted_latency"] == plan["layers"]["3.conv1"]["latency"]
    assert all(time > 0 for time in record["model"]["latency"])
    assert "Measured latency" in lowrank_plugin.report(small).to_str()
    json.dumps(lowrank_plugin.get_state(small))


def test_solver_memory_stands_in_plan_and_report(network, images):
    plan = lowrank_plugin.plan(network, images, budget={"macs": 0.5}, rank_multiple=2)
    chains = {name: entry for name, entry in plan["layers"].items() if entry["decomposer"] != "dense"}
    assert all(entry["solver_bytes"] > 0 for entry in chains.values())
    record = lowrank_plugin.report(lowrank_plugin.apply(network, plan, images)).to_dict()
    for name, entry in chains.items():
        assert (
            record["layers"][name]["solver_bytes"]
            == record["layers"][name]["statistics"]["peak_bytes"]
            == entry["solver_bytes"]
        )


class Synthetic:
    """A measured cost: by chain length and weights, with a constant of the whole network that no layer has."""

    def __init__(self, context, fixed=20000.0, stage=0.0):
        self.context, self.fixed, self.stage = context, fixed, stage

    def layer(self, name, chains):
        return [weights(self.context.chain(name, chain)) + self.stage * len(chain) for chain in chains]

    def networks(self, networks):
        return [weights(network) + self.fixed for network in networks]

    def facts(self):
        return {"clock": "synthetic"}


@pytest.fixture
def synthetic():
    """Registers a cost model that measures; yields the function that changes it."""
    made = {"measure": Synthetic}

    class Plugin:
        @hookimpl
        def lowrank_cost_models(self):
            yield CostModelRecord("ticks", measure=lambda context: made["measure"](context))

    plugin = Plugin()
    manager().register(plugin)
    yield made
    manager().unregister(plugin)


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_the_whole_network_meets_the_budget(untouched, images, synthetic, share, caplog):
    with caplog.at_level(logging.INFO, "lowrank_plugin"):
        small = lowrank_plugin.decompose(untouched, images, budget={"ticks": share}, rank_multiple=1)
    record = lowrank_plugin.report(small).to_dict()
    before, after = record["model"]["ticks"]
    assert [before, after] == [weights(untouched) + 20000, weights(small) + 20000]
    assert share * 0.97 <= after / before <= share
    assert record["model"]["predicted_ticks"] == [before, after]
    assert 1 <= caplog.text.count(" predicted, ") <= 6
    assert record["measured_on"] == {"clock": "synthetic"}


def test_layers_underestimated_by_the_model_are_corrected(network, images, synthetic):
    class Halved(Synthetic):
        """Says of every chain that it costs half of what it does."""

        def layer(self, name, chains):
            costs = super().layer(name, chains)
            return [cost if not chain else cost / 2 for cost, chain in zip(costs, chains, strict=True)]

    synthetic["measure"] = Halved
    small = lowrank_plugin.decompose(network, images, budget={"ticks": 0.8}, rank_multiple=1)
    before, after = lowrank_plugin.report(small).to_dict()["model"]["ticks"]
    assert 0.75 <= after / before <= 0.8


def test_no_layer_is_replaced_by_something_slower(network, images, synthetic):
    synthetic["measure"] = lambda context: Synthetic(context, fixed=0.0, stage=2000.0)
    plan = lowrank_plugin.plan(network, images, budget={"error": 0.9}, rank_multiple=1)
    assert any(entry["decomposer"] != "dense" for entry in plan["layers"].values())
    plan = lowrank_plugin.plan(network, images, budget={"ticks": 0.9}, rank_multiple=1)
    assert all(entry["ticks"][1] <= entry["ticks"][0] for entry in plan["layers"].values())
    assert plan["layers"]["0"]["decomposer"] == "dense"
    assert plan["layers"]["0"]["reason"] == "no chain of the competing decomposers would cost less"


def test_a_budget_out_of_reach_says_what_was_measured(untouched, images, synthetic):
    synthetic["measure"] = lambda context: Synthetic(context, fixed=1e6)
    with pytest.raises(
        BudgetError, match=r"0\.5 cannot be met; the least that was measured for the whole network is 0\.9"
    ):
        lowrank_plugin.plan(untouched, images, budget={"ticks": 0.5})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"backend": "tensorrt"}, '\'tensorrt\'.*"pytorch" or "openvino"'),
        ({"backend": "pytorch", "precision": "int8"}, "cannot be timed in int8"),
        ({"backnd": "pytorch"}, "Did you mean 'backend'"),
    ],
    ids=["backend", "precision", "typo"],
)
def test_bad_runtimes(untouched, images, section, message):
    with pytest.raises(ConfigurationError, match=message):
        lowrank_plugin.plan(untouched, images, budget={"macs": 0.5}, runtime=section)


def test_openvino_missing(untouched, images, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lowrank_plugin.costs.openvino", None)
    with pytest.raises(ConfigurationError, match='runtime "openvino" cannot be used'):
        lowrank_plugin.plan(untouched, images, budget={"latency": 0.5}, runtime={"backend": "openvino"})


def test_cost_models_have_one_way_to_a_cost():
    with pytest.raises(ValueError, match="either a cost or a measure"):
        CostModelRecord("nothing")
    with pytest.raises(ValueError, match="either a cost or a measure"):
        CostModelRecord("both", macs, measure=latency.measure)


def test_random_networks_have_the_structure_and_leave_the_model_alone(untouched):
    found = survey(
        untouched, torch.zeros(1, 3, 16, 16), Settings(budget={"macs": 0.5}), manager().registered(LAYER_ADAPTERS)
    )
    chain = tucker(32, 24, 4, 6)
    made = stand_ins.random_network(untouched, found.layers, {"2": chain})
    assert [tuple(stage.weight.shape[:2]) for stage in made[2]] == [(6, 24), (4, 6), (32, 4)]
    with torch.no_grad():
        outputs = made(torch.randn(4, 3, 16, 16))
    assert torch.isfinite(outputs).all()
    assert PyTorchRuntime(made).networks([made], torch.zeros(1, 3, 16, 16))[0] > 0
