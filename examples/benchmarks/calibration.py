# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What statistics cost, and what drawing positions costs in accuracy: on ResNet-18 at 224x224.

    python examples/benchmarks/calibration.py --json calibration.json
    python examples/benchmarks/calibration.py --images 64 --layers layer1.0.conv1    # quick

Three questions: how long collecting takes beyond the forward passes over the same images; how much memory it needs
beyond theirs, predicted and measured; and how much larger the output error of fits from drawn positions is than of fits
from all positions, both measured under the covariance of all positions.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kernels import DATA, load_module
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from common.table import show_cells

from lowrank_hooks import Norm, Problem
from lowrank_plugin.chains.fitting import fit
from lowrank_plugin.data.batches import evaluating
from lowrank_plugin.layers.survey import Layer, survey
from lowrank_plugin.plugins import DECOMPOSERS, LAYER_ADAPTERS, manager
from lowrank_plugin.settings import Settings
from lowrank_plugin.statistics import passes
from lowrank_plugin.statistics.collection import collect
from lowrank_plugin.statistics.problems import make_problem

DRAWN = ["layer1.0.conv1", "layer1.1.conv2", "layer2.0.conv1", "layer2.0.conv2", "layer2.1.conv2", "layer3.0.conv1"]
"""Layers of the network of which only some positions are taken."""

SETTINGS = Settings(budget={"macs": 0.5})


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with reference.py; random weights without one")
    parser.add_argument("--images", type=int, default=512, help="calibration images")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="how often both are timed, in turn")
    parser.add_argument("--layers", nargs="*", default=DRAWN, help="layers whose added error is measured")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    source, model, images = _task(options.data, options.images)
    batches = list(images.split(options.batch))
    layers = dict(survey(model, batches[0][:1], SETTINGS, manager().registered(LAYER_ADAPTERS)).layers)
    facts: dict[str, Any] = {"model": source, "images": len(images), "batch": options.batch}
    facts["memory"] = _memory(model, layers, batches)
    facts["time"] = _time(model, layers, batches, options.repeats)
    facts["added_error"] = _added_error(model, {name: layers[name] for name in options.layers}, batches)
    _show(facts)
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")


def _task(data: Path, count: int) -> tuple[str, nn.Module, torch.Tensor]:
    if (data / "reference.py").is_file():
        reference = load_module(data / "reference.py")
        images = reference.normalize(reference.imagenet("calibration")[0][:count])
        return "trained ResNet-18, real images", reference.resnet18().eval(), images
    from torchvision.models import resnet18

    torch.manual_seed(0)
    return "ResNet-18 with random weights, random images", resnet18().eval(), torch.randn(count, 3, 224, 224)


def _run(model: nn.Module, batches: list[torch.Tensor]) -> None:
    with evaluating(model):
        for batch in batches:
            model(batch)


def _memory(model: nn.Module, layers: dict[str, Layer], batches: list[torch.Tensor]) -> dict[str, float]:
    """Peak memory of the process beyond that of the forward passes, which come first; in bytes."""
    _run(model, batches[:2])
    before = _peak()
    collect(model, layers, batches)
    allowed = SETTINGS.calibration
    return {
        "predicted": passes.divide(model, layers, batches, allowed.positions, allowed.memory_gb).peak,
        "measured": _peak() - before,
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _time(
    model: nn.Module, layers: dict[str, Layer], batches: list[torch.Tensor], repeats: int
) -> dict[str, float | list[float]]:
    """Seconds of both, taken in turn so that whatever else the machine does meets both alike."""
    without, with_statistics = [], []
    for _ in range(repeats):
        without.append(_seconds(lambda: _run(model, batches)))
        with_statistics.append(_seconds(lambda: collect(model, layers, batches)))
    plain = statistics.median(without)
    ratio = (statistics.median(with_statistics) - plain) / plain
    return {"without": without, "with": with_statistics, "ratio": ratio, "threads": torch.get_num_threads()}


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _added_error(model: nn.Module, layers: dict[str, Layer], batches: list[torch.Tensor]) -> list[dict[str, Any]]:
    """Output errors at half ranks, all under the covariance of all positions."""
    drawn, every = collect(model, layers, batches), collect(model, layers, batches, positions=float("inf"))
    rows = []
    for name, layer in layers.items():
        module = model.get_submodule(name)
        truth = every[name].inputs
        half = max(1, layer.shape.out_channels // 2)
        ranks = {"svd": (half,), "tucker2": (half, max(1, layer.shape.in_channels // 2))}
        for decomposer, rank in ranks.items():
            solver = manager().find(DECOMPOSERS, decomposer).decomposer
            errors = []
            for moments in (drawn[name].inputs, truth):
                problem = make_problem(layer, module, moments, None, SETTINGS)
                (fitted,) = fit([problem], solver, rank, [None], [moments])
                measured = Problem(problem.kernel, Norm(truth.covariance.to(problem.kernel)))
                errors.append(measured.relative_error(fitted.factorization))
            counts = [drawn[name].patches.count, every[name].patches.count]
            row = {"layer": name, "decomposer": decomposer, "rank": rank, "positions": counts, "errors": errors}
            rows.append({**row, "added": errors[0] / errors[1] - 1})
    return rows


def _show(facts: dict[str, Any]) -> None:
    took, needs = facts["time"], facts["memory"]
    print(
        f"{facts['model']}, {facts['images']} images in batches of {facts['batch']}, {took['threads']} threads\n"
        f"forward passes {statistics.median(took['without']):.1f} s, with statistics "
        f"{statistics.median(took['with']):.1f} s: {took['ratio']:.2f} of the forward passes on top\n"
        f"memory on top: predicted {needs['predicted'] / 1e6:.0f} MB, measured {needs['measured'] / 1e6:.0f} MB"
    )
    cells = (
        [
            row["layer"],
            f"{row['decomposer']} {list(row['rank'])}",
            *(str(count) for count in row["positions"]),
            *(f"{error:.4f}" for error in row["errors"]),
            f"{row['added']:.2%}",
        ]
        for row in facts["added_error"]
    )
    header = ("Layer", "Chain", "Positions drawn", "of all", "Error, drawn", "Error, all", "Added")
    show_cells("Output error of fits at half ranks, under the covariance of all positions", header, cells, names=2)


if __name__ == "__main__":
    main()
