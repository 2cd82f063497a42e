# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Writes a file of every kind that the core writes, of one small network, by the public functions alone.

Run as ``python -m data.make_format1 FOLDER`` in ``tests``. The weights and inputs are read from
``FOLDER/network.safetensors`` where that is there, so that another version, or another torch, compresses the same
network.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lowrank_plugin
from lowrank_hooks import StepEvent, hookimpl
from lowrank_plugin.plugins import manager
from lowrank_plugin.settings import Settings

SECTIONS: dict[str, dict[str, Any]] = {
    "macs": {"budget": {"macs": 0.6}},
    "parameters": {"budget": {"parameters": 0.5}, "decomposers": ["svd"]},
    "error": {"budget": {"error": 0.3}, "policy": "uniform"},
    "two_sided": {"budget": {"macs": 0.5}, "norm": "two-sided", "repair": "none", "decomposers": "int8"},
    "frobenius": {"budget": {"parameters": 0.6}, "norm": "frobenius", "policy": "energy"},
    "by_hand": {"ranks": {"second": [3, 4], "{re}hidden": 5}, "ignored_scopes": ["head"]},
    "accuracy": {"budget": {"accuracy_drop": 0.2}, "target_scopes": ["second", "{re}^hidden$"]},
    "timed": {"budget": {"macs": 0.6}, "decomposers": ["svd"], "runtime": {"backend": "pytorch"}, "repair": "none"},
}
"""Sections of plans by name; each holds a kind of budget, norm or choice that the others do not."""

RANKS = {
    "svd": [5], "spatial_svd": [5], "tucker2": [4, 5], "cpd": [5], "tucker2_spatial": [4, 5, 3],
    "tucker2_cpd": [4, 5, 6], "tensorly:partial_tucker": [4, 5], "tensorly:parafac": [5],
}  # fmt: skip
"""A rank of the second convolution for every decomposer."""

SETTINGS: dict[str, Any] = {
    "budget": {"macs": 0.25},
    "ranks": {"second": 4, "{re}^first$": [2, 3]},
    "decomposers": ["tucker2", "svd"],
    "norm": "two-sided",
    "policy": "zhang",
    "rank_multiple": 3,
    "stability": {"slack": 0.125},
    "repair": "distill",
    "distillation": {"steps": 5, "network_steps": 0, "checkpoint": "progress.safetensors"},
    "runtime": {"backend": "openvino", "precision": "int8"},
    "target_scopes": "{re}.*",
    "ignored_scopes": ["head"],
    "calibration": {"samples": 77, "positions": 3.5, "memory_gb": 0.75},
    "seed": 9,
    "device": "cpu",
    "on_failure": "raise",
}
"""A section with every key, none of them at its default."""

DISTILLED = {"ranks": {"first": 2, "second": 5}, "decomposers": ["svd"], "repair": "distill"}


class Small(nn.Module):
    """Layers of which correlations, products and vectors are kept: 3x8x8 in, 6 out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.hidden = nn.Linear(64, 8)
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        x = nn.functional.avg_pool2d(x, 2).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


def network(folder: Path) -> Small:
    """The network, in eval mode.

    :param folder: with its weights.
    """
    made = Small().eval()
    stored = load_file(folder / "network.safetensors")
    made.load_state_dict({name: stored[name] for name in made.state_dict()})
    return made


def images(folder: Path) -> Tensor:
    """The inputs [16, 3, 8, 8].

    :param folder: with them beside the weights.
    """
    return load_file(folder / "network.safetensors")["images"]


def batches(folder: Path) -> list[Tensor]:
    """The inputs in two batches."""
    return list(images(folder).split(8))


def judge(model: nn.Module, inputs: Tensor) -> float:
    """A quality that falls slowly as outputs differ from those of the network, which are about 1."""
    return -float(model(inputs).square().mean().log())


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """What a network puts out with its weights rounded to multiples of 1/8; it is changed.

    In float64 that is exact, for ten stages in a row too, and so the same on every machine.

    :param model: the network.
    :param inputs: multiples of 1/64.
    """
    model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 8).round() / 8)
        return model(inputs.double())


def draw(path: Path) -> None:
    """Weights and smooth inputs, drawn once."""
    generator = torch.Generator().manual_seed(0)
    values = {
        name: torch.randn(each.shape, generator=generator) * (1.5 / each[0].numel() ** 0.5 if each.dim() > 1 else 0.1)
        for name, each in Small().state_dict().items()
    }
    coarse = torch.randn(16, 3, 4, 4, generator=generator)
    values["images"] = nn.functional.interpolate(coarse, 8, mode="bilinear").clamp(-3, 3)
    save_file({name: (each * 64).round() / 64 for name, each in values.items()}, path)


def write(path: Path, value: Any) -> None:
    """Write a JSON value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def keep(folder: Path, name: str, small: nn.Module) -> None:
    """Write the state of a compressed network, its weights, and what it puts out."""
    write(folder / "states" / f"{name}.json", lowrank_plugin.get_state(small))
    weights = {key: each.clone() for key, each in small.state_dict().items()}
    save_file(weights, folder / "states" / f"{name}.safetensors")
    save_file({"outputs": outputs(small, images(folder))}, folder / "states" / f"{name}.outputs.safetensors")


def make_plans(folder: Path) -> None:
    """Plans, and the states of the networks that they give."""
    for name, section in SECTIONS.items():
        if "accuracy_drop" in (section.get("budget") or {}):
            section = {**section, "validation_fn": lambda model: judge(model, images(folder))}
        made = lowrank_plugin.plan(network(folder), batches(folder), rank_multiple=1, **section)
        write(folder / "plans" / f"{name}.json", made)
        keep(folder, name, lowrank_plugin.apply(network(folder), made, batches(folder)))


def make_states(folder: Path) -> None:
    """States of chains by every decomposer."""
    for name, rank in RANKS.items():
        section = {"ranks": {"second": rank}, "decomposers": [name], "target_scopes": ["second"]}
        keep(folder, name.replace(":", "_"), lowrank_plugin.decompose(network(folder), batches(folder), **section))


def make_statistics(folder: Path) -> None:
    """Statistics, and plans that they give."""
    seen = lowrank_plugin.collect_statistics(network(folder), batches(folder))
    seen.save(folder / "statistics.safetensors")
    for name, section in STATISTICS.items():
        made = lowrank_plugin.plan(network(folder), statistics=seen, rank_multiple=1, **section)
        write(folder / "plans" / f"{name}.json", made)


STATISTICS = {
    "statistics_macs": {"budget": {"macs": 0.5}},
    "statistics_two_sided": {"budget": {"parameters": 0.5}, "norm": "two-sided"},
}
"""Sections of plans that statistics give, by name."""


class InterruptionError(Exception):
    """Ends a distillation after its first block."""


class Interrupting:
    """An observer that ends a distillation after its first block."""

    @hookimpl
    def lowrank_step(self, event: StepEvent) -> None:
        """Raise where that block is done."""
        if event.step == "distill":
            raise InterruptionError


def distilled(folder: Path, checkpoint: Path) -> nn.Module:
    """The network with its convolutions compressed and distilled.

    :param checkpoint: where progress is kept.
    """
    progress = {"steps": 3, "network_steps": 0, "checkpoint": str(checkpoint)}
    return lowrank_plugin.decompose(network(folder), batches(folder), distillation=progress, **DISTILLED)


def make_checkpoint(folder: Path) -> None:
    """A checkpoint of a distillation that was interrupted, and the network that it gives in the end."""
    observer = Interrupting()
    manager().register(observer)
    try:
        distilled(folder, folder / "checkpoint.safetensors")
    except InterruptionError:
        pass
    finally:
        manager().unregister(observer)
    whole = distilled(folder, folder / "whole.safetensors")
    (folder / "whole.safetensors").unlink()
    weights = {name: each.clone() for name, each in whole.state_dict().items()}
    save_file(weights, folder / "distilled.safetensors")
    write(folder / "distilled.json", lowrank_plugin.report(whole).to_dict()["distilled"])


def make(folder: Path) -> None:
    """Write everything.

    :param folder: with ``network.safetensors``, or empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "network.safetensors").exists():
        draw(folder / "network.safetensors")
    os.environ["XDG_CACHE_HOME"] = str(folder)  # measured times are kept there, in lowrank/latency
    make_plans(folder)
    make_states(folder)
    make_statistics(folder)
    make_checkpoint(folder)
    write(folder / "settings.json", [SETTINGS, Settings.from_mapping(SETTINGS).to_mapping()])


if __name__ == "__main__":
    torch.set_num_threads(1)
    make(Path(sys.argv[1]))
