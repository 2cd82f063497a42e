# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""From an NNCF config to a smaller, faster int8 network, on real images and without a download.

    python examples/demo.py                     # trains a small network on handwritten digits, then compresses it
    python examples/demo.py --model torchvision:resnet18 --weights resnet18.pth \\
        --calibration images/train --validation images/val --budget 0.5

Prints one table of four versions of the network, all measured in OpenVINO, and writes it to the output folder as a
figure and as JSON beside the OpenVINO files.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from common import table
from common.versions import Task, measured
from torch.utils.data import Subset


def main(arguments: list[str] | None = None) -> None:
    """Run the demo.

    :param arguments: of the command line; None takes those of the process.
    """
    options = _parse(arguments)
    start = time.perf_counter()
    task = _digits(options) if options.model is None else _own(options)
    rows = measured(task, options.output, options.budget, options.overflow_fix, options.seconds)
    title = f"{task.name}: OpenVINO {_versions()['openvino']} on the CPU, one image at a time"
    table.show(rows, title)
    table.draw(rows, title, options.output / "demo.png")
    facts = {"task": task.name, "budget": options.budget, "overflow_fix": options.overflow_fix}
    table.write_json(rows, options.output / "demo.json", **facts, package_versions=_versions())
    seconds = time.perf_counter() - start
    print(f"Figure, JSON and OpenVINO files are in {options.output}/. It took {seconds:.0f} s in all.")


def _digits(options: argparse.Namespace) -> Task:
    from common import digits

    training, test = digits.datasets(options.seed)
    print(f"Training a residual network on {len(training)} handwritten digits; {len(test)} others are for the test.")
    model = digits.train(training, seed=options.seed)
    return Task("Handwritten digits", model, Subset(training, range(min(options.samples, len(training)))), test)


def _own(options: argparse.Namespace) -> Task:
    from common.images import Images, load_model

    model = load_model(options.model, options.weights)
    calibration, validation = Images(options.calibration), Images(options.validation)
    # Folders are often sorted by class; a seeded shuffle makes any number of images a fair selection.
    order = torch.randperm(len(calibration), generator=torch.Generator().manual_seed(options.seed)).tolist()
    return Task(options.model, model, Subset(calibration, order[: options.samples]), validation)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python examples/demo.py", description=(__doc__ or "").splitlines()[0])
    own = parser.add_argument_group("a network and images of your own")
    own.add_argument("--model", metavar="torchvision:NAME", help="a model of torchvision, such as torchvision:resnet18")
    own.add_argument("--weights", type=Path, metavar="FILE", help="its weights, .safetensors or .pth")
    own.add_argument("--calibration", type=Path, metavar="DIR", help="images to compress with; labels are not used")
    own.add_argument("--validation", type=Path, metavar="DIR", help="images to measure the accuracy on")
    parser.add_argument("--budget", type=float, default=0.5, help="share of the MACs that may remain (default: 0.5)")
    parser.add_argument("--samples", type=int, default=512, help="calibration images used (default: 512)")
    parser.add_argument(
        "--overflow-fix",
        choices=("enable", "first_layer_only", "disable"),
        default="enable",
        help="'enable' quantizes weights to 7 bits, which CPUs without VNNI need for exact sums (default: enable)",
    )
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder (default: demo-output)")
    parser.add_argument("--seconds", type=float, default=12.0, help="time spent measuring latency (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="of training and of the choice of images (default: 0)")
    options = parser.parse_args(arguments)
    if options.model is None and (options.weights or options.calibration or options.validation):
        parser.error("--weights, --calibration and --validation go with --model, such as --model torchvision:resnet18")
    if options.model is not None and not (options.calibration and options.validation):
        parser.error("--model needs --calibration DIR and --validation DIR, folders of images")
    return options


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("lowrank-plugin", "torch", "nncf", "openvino")}


if __name__ == "__main__":
    main()
