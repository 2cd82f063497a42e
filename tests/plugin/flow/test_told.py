# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What plan and report say is so, in every way to write a network, wherever and however it is compressed."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import pytest
import torch
from plugin.fingerprint import unchanged
from plugin.idioms import IDIOMS, PAST, SAMPLES, Idiom
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import lowrank_plugin
from lowrank_plugin.data.batches import call
from lowrank_plugin.errors import LowRankError
from lowrank_plugin.support.copying import copied

SECTION: dict[str, Any] = {"budget": {"macs": 0.8}, "rank_multiple": 1, "decomposers": ["svd", "tucker2"]}
COPIED = [name for name, each in IDIOMS.items() if each.copied]
UNCOPIED = [name for name, each in IDIOMS.items() if not each.copied]

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")


class Counter(TorchDispatchMode):
    """Multiply-accumulates of products and convolutions, one by one."""

    macs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "convolution":
            self.macs += (args[0] if args[6] else output).numel() * args[1][0].numel()
        elif name in ("mm", "bmm"):
            self.macs += output.numel() * args[0].shape[-1]
        elif name in ("addmm", "baddbmm"):
            self.macs += output.numel() * args[1].shape[-1]
        return output


def counted(model: nn.Module, batch: Any) -> float:
    """The MACs for one sample, independent of what the survey counts with."""
    model, counter = copied(model).eval(), Counter()

    def recurrent(module: nn.LSTM, args: Any, output: Any) -> None:
        weights = sum(each.numel() for name, each in module.named_parameters() if "weight" in name)
        counter.macs += args[0].shape[0] * args[0].shape[1] * weights

    for module in model.modules():
        if isinstance(module, nn.LSTM):
            module.register_forward_hook(recurrent)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            call(model, batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.macs / SAMPLES


def runs(model: nn.Module, names: list[str], batch: Any) -> dict[str, int]:
    """How often some modules are called."""
    model = copied(model).eval()
    counts = dict.fromkeys(names, 0)

    def count(name: str, *rest: Any) -> None:
        counts[name] += 1

    for name in names:
        model.get_submodule(name).register_forward_hook(functools.partial(count, name))
    with torch.no_grad():
        call(model, batch)
    return counts


@pytest.mark.parametrize("name", COPIED)
def test_plan_and_report_say_what_is_so(name):
    idiom = IDIOMS[name]
    model, batches = idiom.network(), idiom.batches()
    plan = lowrank_plugin.plan(model, batches, **SECTION)
    small = lowrank_plugin.decompose(model, batches, **SECTION)
    report = lowrank_plugin.report(small).to_dict()
    assert report["model"] == plan["model"]
    assert report["model"]["macs"] == pytest.approx([counted(each, batches[0]) for each in (model, small)], rel=1e-3)
    assert report["model"]["parameters"] == [sum(p.numel() for p in each.parameters()) for each in (model, small)]
    assert report["model"]["macs"][1] <= 0.8 * report["model"]["macs"][0]
    chains = [layer for layer, each in report["layers"].items() if each["rank"]]
    assert chains
    assert runs(small, chains, batches[0]) == runs(model, chains, batches[0])
    for layer, reason in idiom.dense.items():
        assert reason in report["skipped"][layer]
    left_alone = {each for each in report["skipped"] if each not in idiom.dense}
    assert not [each for each in left_alone if isinstance(model.get_submodule(each), nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize("name", COPIED)
def test_in_place_gives_the_same(name):
    idiom = IDIOMS[name]
    copied = lowrank_plugin.decompose(idiom.network(), idiom.batches(), **SECTION)
    model = idiom.network()
    changed = lowrank_plugin.decompose(model, idiom.batches(), inplace=True, **SECTION)
    assert changed is model or name == "layer_alone"
    assert equal(changed, copied)


def equal(first: nn.Module, second: nn.Module) -> bool:
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(each, theirs[name]) for name, each in mine.items())


@pytest.mark.parametrize("name", UNCOPIED)
def test_what_cannot_be_copied_is_named_before_any_pass_and_compressed_in_place(name):
    idiom, batches = IDIOMS[name], IDIOMS[name].batches()
    model, attribute = idiom.network(), {"HoldsLock": "'lock'", "HoldsGenerator": "'b.numbers'"}[name]
    steps: list[str] = []

    def progress(iterable: Any, description: str, *rest: Any) -> Any:
        steps.append(description)
        return iterable

    with unchanged(model, batches), pytest.raises(LowRankError, match=f"cannot be copied because of .*{attribute}"):
        lowrank_plugin.decompose(model, batches, progress=progress, **SECTION)
    with pytest.raises(LowRankError, match=attribute):
        lowrank_plugin.decompose(model, batches, progress=progress, inplace=True, repair="distill", **SECTION)
    assert not steps
    plan = lowrank_plugin.plan(model, batches, **SECTION)
    small = lowrank_plugin.apply(model, plan, batches, inplace=True)
    assert lowrank_plugin.report(small).to_dict()["model"] == plan["model"]
    assert counted_in_place(small, batches[0]) == pytest.approx(plan["model"]["macs"][1], rel=1e-3)


def counted_in_place(model: nn.Module, batch: Any) -> float:
    counter = Counter()
    with torch.no_grad(), counter:
        call(model.eval(), batch)
    return counter.macs / SAMPLES


CONTEXTS: dict[str, Any] = {
    "inference": torch.inference_mode,
    "autocast": functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16),
    "no_grad": torch.no_grad,
}


@pytest.mark.parametrize("repair", ["moments", "distill"])
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", ["plain_sequence", "ResidualWithNorms", "Attention", "kept_features"])
def test_the_callers_context_makes_no_difference(name, context, repair):
    idiom = IDIOMS[name]
    section = {**SECTION, "repair": repair}
    outside = lowrank_plugin.decompose(idiom.network(), idiom.batches(), **section)
    model = idiom.network()
    with torch.inference_mode(context == "inference"):
        batches = idiom.batches()  # inference tensors, where that is the context
    with CONTEXTS[context]():
        with unchanged(model, batches):
            inside = lowrank_plugin.decompose(model, batches, **section)
        restored = lowrank_plugin.restore(model, lowrank_plugin.get_state(inside))
        dense = lowrank_plugin.to_dense(inside)
    assert equal(inside, outside)
    for each in (inside, restored, dense):
        assert not any(parameter.is_inference() for parameter in each.parameters())
        learn(each, idiom)


def learn(model: nn.Module, idiom: Idiom) -> None:
    with contextlib.suppress(AttributeError):
        model.zero_grad()
    model.train()
    output = call(model, idiom.batches()[0])
    output.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def convolutions(hooked: bool) -> nn.Sequential:
    """What puts out four times as much, by a hook or by a module."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
    if hooked:
        second.register_forward_hook(lambda module, args, output: output * 4)
    return nn.Sequential(first, nn.ReLU(), second, nn.Identity() if hooked else Scaled(4.0), nn.ReLU()).eval()


@pytest.mark.parametrize("repair", ["none", "moments", "distill"])
def test_a_hook_that_changes_the_output_counts_as_a_module_behind_the_layer(repair):
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(16, 3, 16, 16, generator=generator) for _ in range(8)]
    section = {"ranks": {"2": [6, 6]}, "decomposers": ["tucker2"], "norm": "frobenius", "repair": repair}
    hook, module = (lowrank_plugin.decompose(convolutions(each), data, **section) for each in (True, False))
    assert equal(hook, module)
    wanted = convolutions(True)(data[0])
    assert torch.equal(hook(data[0]), module(data[0]))
    errors = {"none": 0.8, "moments": 0.78, "distill": 0.66}
    assert float((hook(data[0]) - wanted).detach().norm() / wanted.detach().norm()) < errors[repair]


@pytest.mark.parametrize("section", [{"repair": "moments"}, {"repair": "distill"}, {"norm": "two-sided"}], ids=str)
def test_a_hook_that_changes_the_input_counts_as_a_module_before_the_layer(section):
    def perceptron(hooked: bool) -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [nn.Linear(32, 48), nn.Linear(48, 48), nn.Linear(48, 10)]
        if hooked:
            layers[1].register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
        return nn.Sequential(
            layers[0], nn.ReLU(), nn.Identity() if hooked else Scaled(0.5), layers[1], nn.ReLU(), layers[2]
        )

    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(32, 32, generator=generator) for _ in range(4)]
    section = {**SECTION, "budget": {"macs": 0.6}, **section}
    hook, module = (lowrank_plugin.decompose(perceptron(each), data, **section) for each in (True, False))
    assert equal(hook, module)
    assert lowrank_plugin.report(hook).to_dict().get("distilled") == lowrank_plugin.report(module).to_dict().get(
        "distilled"
    )


def test_a_layer_past_the_tree_keeps_its_share_of_the_budget():
    idiom = IDIOMS["Closure"]
    model, batches = idiom.network(), idiom.batches()
    half = 32 * 32 / 2
    plan = lowrank_plugin.plan(model, batches, **SECTION)
    assert PAST in plan["skipped"]["b"]
    assert plan["model"]["macs"][0] == 2048
    assert plan["layers"]["a"]["macs"][1] <= 2 * half - 0.2 * 2048
    with pytest.raises(LowRankError, match="past the module tree"):
        lowrank_plugin.decompose(model, batches, **{**SECTION, "budget": {"macs": 0.4}})
