# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Training a network with CPD layers, with the sensitivity of the decomposition bounded and without.

    python examples/cpd_training.py --json cpd_training.json --figure cpd_training.png     # handwritten digits
    python examples/cpd_training.py --data FOLDER --layers '{re}layer3.[012].conv.' --rank 64     # CIFAR-10

``--data`` names a folder with a ``reference.py``, as for ``benchmarks/accuracy.py``. Both networks start from the same
trained one, see the same images in the same order and use the same learning rate. Without the bound, components of the
decomposition grow and cancel each other: the network computes nearly the same, but a small step of the optimizer
changes it a lot.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.table import show_cells
from common.training import Task, accuracy, cifar_task, digits_task, train

import lowrank_plugin

STABILITY: dict[str, Any] = {"plain": False, "stable": {"slack": 0.02}}


def main(arguments: list[str] | None = None) -> None:
    """Run the example.

    :param arguments: of the command line; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with reference.py; the digits without")
    parser.add_argument("--layers", default="{re}body.*conv2", help="name or {re}pattern (default: {re}body.*conv2)")
    parser.add_argument("--rank", type=int, default=64, help="of the layers (default: 64)")
    parser.add_argument("--samples", type=int, default=2000, help="most images to train on (default: 2000)")
    parser.add_argument("--epochs", type=int, default=1, help="of training (default: 1)")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate at the start (default: 0.01)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="where to draw the losses")
    options = parser.parse_args(arguments)
    task = digits_task() if options.data is None else cifar_task(options.data, options.samples)
    runs = compared(task, {options.layers: options.rank}, options.epochs, options.rate)
    title = f"{task.name}: CPD layers of rank {options.rank}, learning rate {options.rate:g}"
    show(runs, accuracy(task.model, task.test), title)
    if options.json:
        facts = {"task": task.name, "layers": options.layers, "rank": options.rank, "rate": options.rate}
        options.json.write_text(json.dumps({**facts, "epochs": options.epochs, "runs": runs}, indent=2) + "\n")
    if options.figure:
        draw(runs, title, options.figure)


def compared(task: Task, ranks: Mapping[str, int], epochs: int, rate: float) -> dict[str, dict[str, Any]]:
    """Decompose a network twice and train both.

    :param task: the network and its data.
    :param ranks: the layers that become CPD chains.
    :param epochs: of training.
    :param rate: learning rate at the start.
    :return: for "plain" and "stable": the accuracy before and after in per cent, the losses and gradients a step.
    """
    batches = list(task.training.tensors[0][:256].split(64))
    runs = {}
    for name, stability in STABILITY.items():
        model = lowrank_plugin.decompose(
            task.model, batches, ranks=dict(ranks), decomposers=["cpd"], stability=stability
        )
        before = accuracy(model, task.test)
        course = train(model, task.training, epochs, rate, batch=64)
        runs[name] = {"before": before, "after": accuracy(model, task.test), **vars(course)}
    return runs


def show(runs: Mapping[str, Mapping[str, Any]], original: float, title: str) -> None:
    """Print a table.

    :param runs: as :func:`compared` returns them.
    :param original: accuracy of the network that was decomposed, in per cent.
    :param title: above the table.
    """
    cells = [["original", f"{original:.2f}"]]
    for name, run in runs.items():
        losses, steepest = run["losses"], max(run["gradients"])
        accuracies = (f"{run['before']:.2f}", f"{run['after']:.2f}")
        cells.append([name, *accuracies, f"{max(losses):.3f}", f"{losses[-1]:.3f}", f"{steepest:.3g}"])
    header = ("", "top-1 % before", "after", "highest loss", "last loss", "largest gradient")
    show_cells(title, header, cells)


def draw(runs: Mapping[str, Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw the losses over the steps.

    :param runs: as :func:`compared` returns them.
    :param title: above the figure.
    :param path: of the .png file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for (name, run), colour in zip(runs.items(), ("#c44e52", "#0068b5"), strict=True):
        axes.plot(run["losses"], label=f"{name} CPD", color=colour)
    axes.set(title=title, xlabel="step", ylabel="training loss, nats", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
