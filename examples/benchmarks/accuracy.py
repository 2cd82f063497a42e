# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Accuracy without fine-tuning: the default settings beside plain low rank, and each of their parts left out in turn.

    python examples/benchmarks/accuracy.py --json accuracy.json
    python examples/benchmarks/accuracy.py --model resnet56 --budget 0.5 --variants defaults

``--data`` names a folder with a ``reference.py`` that loads trained networks and labelled images (its ``MODELS``,
``normalize``, ``logits`` and ``compare`` are used). Without one, the handwritten digits of scikit-learn are used and
their network is trained first. Calibration uses no labels; the validation images are for measuring only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kernels import DATA, load_module
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from common.table import show_cells

import lowrank_plugin

SAMPLES, BATCH = 512, 32
PLAIN = {"decomposers": ["tucker2"], "norm": "frobenius", "policy": "uniform", "repair": "none"}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "plain": PLAIN,
    "no_repair": {"repair": "none"},
    "distill": {"repair": "distill"},
    "uniform": {"policy": "uniform"},
    "frobenius": {"norm": "frobenius"},
    "two_sided": {"norm": "two-sided"},
    "int8": {"decomposers": "int8"},
    "cpd_only": {"decomposers": ["cpd", "svd"]},
    "svd_only": {"decomposers": ["svd"]},
    "spatial_svd_only": {"decomposers": ["spatial_svd", "svd"]},
    "tucker2_only": {"decomposers": ["tucker2", "svd"]},
}


@dataclass(frozen=True)
class Task:
    """A trained network and its data.

    :param name: for the title.
    :param model: in eval mode.
    :param batches: calibration images.
    :param images: validation images [N, C, H, W].
    :param labels: their classes [N].
    """

    name: str
    model: nn.Module
    batches: list[Tensor]
    images: Tensor
    labels: Tensor

    @torch.no_grad()
    def logits(self, model: nn.Module) -> Tensor:
        """Outputs on the validation images."""
        return torch.cat([model(batch) for batch in self.images.split(50)])

    def compare(self, outputs: Tensor, reference: Tensor) -> dict[str, float]:
        """Top-1 and agreement with the original in per cent, and KL(original || compressed) in nats."""
        kl = F.kl_div(outputs.log_softmax(1), reference.log_softmax(1), log_target=True, reduction="batchmean")
        return {
            "top1": float((outputs.argmax(1) == self.labels).float().mean() * 100),
            "agreement": float((outputs.argmax(1) == reference.argmax(1)).float().mean() * 100),
            "kl": float(kl),
        }


class Stopwatch:
    """Stands in for a progress bar and adds up the seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, items: Iterable[Any], *, description: str, total: int | None) -> Iterator[Any]:
        start = time.perf_counter()
        yield from items
        self.seconds[description] = self.seconds.get(description, 0.0) + time.perf_counter() - start


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with reference.py")
    parser.add_argument("--model", default="resnet18", help="a key of reference.MODELS")
    parser.add_argument("--budget", type=float, default=0.5, help="share of the MACs that may remain")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["plain", "defaults"])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    task = load_task(options.data, options.model)
    reference = task.logits(task.model)
    rows = [{"variant": "original", "macs": 1.0, "parameters": 1.0, **task.compare(reference, reference)}]
    for variant in options.variants:
        rows.append({"variant": variant, **_run(task, reference, options.budget, VARIANTS[variant])})
        print(f"{variant}: {rows[-1]}", flush=True)
    _show(rows, f"{task.name}, {options.budget:g} of the MACs, {SAMPLES} calibration images, no fine-tuning")
    if options.json:
        options.json.write_text(json.dumps({"model": task.name, "budget": options.budget, "rows": rows}, indent=2))


def _run(task: Task, reference: Tensor, budget: float, section: dict[str, Any]) -> dict[str, Any]:
    watch, start = Stopwatch(), time.perf_counter()
    small = lowrank_plugin.decompose(task.model, task.batches, budget={"macs": budget}, progress=watch, **section)
    seconds = time.perf_counter() - start
    record = lowrank_plugin.report(small).to_dict()["model"]
    share = {key: record[key][1] / record[key][0] for key in ("macs", "parameters")}
    return {**share, **task.compare(task.logits(small), reference), "seconds": seconds, "steps": watch.seconds}


def load_task(data: Path, name: str) -> Task:
    """A network of a folder with its images; where there is no such folder, digits and a network trained on them here.

    :param data: the folder.
    :param name: a key of the ``MODELS`` of its ``reference.py``.
    """
    return _trained(data, name) if (data / "reference.py").is_file() else _digits()


def _trained(data: Path, name: str) -> Task:
    reference = load_module(data / "reference.py")
    build, images_of = reference.MODELS[name]
    calibration, (images, labels) = images_of("calibration")[0][:SAMPLES], images_of("validation")
    batches = [reference.normalize(calibration[i : i + BATCH]) for i in range(0, len(calibration), BATCH)]
    return Task(name, build(), batches, reference.normalize(images), torch.from_numpy(np.asarray(labels)))


def _digits() -> Task:
    from common import digits

    print("No folder with trained networks: training a small one on scikit-learn's handwritten digits.")
    training, test = digits.datasets()
    images, labels = test.tensors
    return Task("digits", digits.train(training), list(training.tensors[0][:SAMPLES].split(BATCH)), images, labels)


def _show(rows: list[dict[str, Any]], title: str) -> None:
    columns = {"macs": ".3f", "parameters": ".3f", "top1": ".2f", "agreement": ".2f", "kl": ".3f", "seconds": ".0f"}
    cells = ([row["variant"], *(f"{row.get(key, 0):{form}}" for key, form in columns.items())] for row in rows)
    show_cells(title, ("Variant", "MACs", "Parameters", "Top-1 %", "Agreement %", "KL", "Seconds"), cells)


if __name__ == "__main__":
    main()
