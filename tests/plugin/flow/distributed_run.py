# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What each of several processes runs: the same calls as one process would make, results into a folder."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn

import lowrank_plugin
from lowrank_hooks import StepEvent, hookimpl
from lowrank_plugin.errors import LowRankError
from lowrank_plugin.plugins import manager

SECTION = {"budget": {"macs": 0.5}, "rank_multiple": 4}


def example() -> tuple[nn.Module, list[torch.Tensor]]:
    """A network with layers of every kind, and an odd number of batches."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(384, 10),
    )  # fmt: skip
    return model.eval(), list(torch.randn(5, 8, 3, 10, 10))


class Repairs:
    """Sees how many batches the repair ran."""

    total: int | None = None

    @hookimpl
    def lowrank_step(self, event: StepEvent) -> None:
        """An observer's hook."""
        if event.step == "repair":
            self.total = event.total


def run(folder: Path, name: str) -> None:
    """Collect, plan, compress; then meet data that only some processes fail on."""
    model, batches = example()
    lowrank_plugin.collect_statistics(model, batches).save(folder / f"{name}.safetensors")
    plan = lowrank_plugin.plan(model, batches, **SECTION)
    (folder / f"{name}.json").write_text(json.dumps(plan))
    repairs = Repairs()
    manager().register(repairs)
    with torch.no_grad():
        outputs = lowrank_plugin.apply(model, plan, batches)(batches[0])
    manager().unregister(repairs)
    torch.save({"outputs": outputs, "repairs": repairs.total}, folder / f"{name}.pt")
    batches[1] = batches[1][:, :2]
    try:
        lowrank_plugin.plan(model, batches, **SECTION)
    except LowRankError as error:
        (folder / f"{name}.txt").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    run(Path(sys.argv[1]), str(dist.get_rank()))
    dist.destroy_process_group()
