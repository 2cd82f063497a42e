# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Fine-tuning a compressed and quantized network: the usual training loop, quantizers included.

    python examples/fine_tuning.py --json fine_tuning.json                     # handwritten digits
    python examples/fine_tuning.py --data FOLDER --budget 0.4 --rate 0.01      # ResNet-20 on CIFAR-10

``--data`` names a folder with a ``reference.py``, as for ``benchmarks/accuracy.py``. The compressed model is an
ordinary torch model: chains train as layers do, and NNCF's quantizers are differentiable, so the same loop is
quantization-aware training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import nncf
from common.table import show_cells
from common.training import Course, Task, accuracy, cifar_task, digits_task, train

import lowrank_nncf


def main(arguments: list[str] | None = None) -> None:
    """Run the example.

    :param arguments: of the command line; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with reference.py; the digits without")
    parser.add_argument("--budget", type=float, default=0.3, help="share of the MACs that may remain (default: 0.3)")
    parser.add_argument("--epochs", type=int, default=2, help="of fine-tuning (default: 2)")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate at the start (default: 0.01)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    options = parser.parse_args(arguments)
    task = digits_task() if options.data is None else cifar_task(options.data)
    rows, course = fine_tuned(task, options.budget, options.epochs, options.rate)
    show(rows, f"{task.name}: {options.budget:g} of the MACs, int8, {options.epochs} epochs at {options.rate:g}")
    print(f"Loss {course.losses[0]:.3f} to {course.losses[-1]:.3f}; largest gradient {max(course.gradients):.2f}.")
    if options.json:
        facts = {"task": task.name, "budget": options.budget, "epochs": options.epochs, "rate": options.rate}
        options.json.write_text(json.dumps({**facts, "rows": rows, **vars(course)}, indent=2) + "\n")


def fine_tuned(task: Task, budget: float, epochs: int, rate: float) -> tuple[list[dict[str, Any]], Course]:
    """Compress, quantize and train a network, and measure it before and after each.

    :param task: the network and its data.
    :param budget: the share of the MACs that may remain.
    :param epochs: of training.
    :param rate: learning rate at the start.
    :return: a row for each version, and how the training went.
    """
    dataset = nncf.Dataset(list(task.training.tensors[0][:512].split(32)))
    lowrank = {"algorithm": "lowrank", "budget": {"macs": budget}, "decomposers": "int8"}
    quantization = {"algorithm": "quantization", "overflow_fix": "enable"}
    # one section after the other only to measure in between; a list of both gives the same model
    _, small = lowrank_nncf.create_compressed_model(task.model, {"compression": lowrank}, dataset)
    controller, quantized = lowrank_nncf.create_compressed_model(small, {"compression": quantization}, dataset)
    rows = [
        {"version": name, "top1": accuracy(model, task.test)}
        for name, model in {"original": task.model, "low-rank": small, "low-rank + int8": quantized}.items()
    ]
    course = train(quantized, task.training, epochs, rate, controller=controller)
    return [*rows, {"version": "fine-tuned", "top1": accuracy(quantized, task.test)}], course


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print a table.

    :param rows: the versions.
    :param title: above it.
    """
    show_cells(title, ("", "top-1 %"), ([row["version"], f"{row['top1']:.2f}"] for row in rows))


if __name__ == "__main__":
    main()
