# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""How much the data behind the statistics matters: each network compressed with its own images and with another's.

    python examples/benchmarks/transfer.py --json transfer.json
    python examples/benchmarks/transfer.py --images 64 --validation 100    # quick

The ImageNet ResNet-18 is compressed with covariances from ImageNet images and from CIFAR-10 images (enlarged to its
input), the CIFAR-10 ResNet-20 with covariances from CIFAR-10 images and from ImageNet images (shrunk). Only means,
covariances and gradients differ between the two columns: nothing is repaired afterwards. The experiment is that of
Kalle et al., "Distribution-Aware Tensor Decomposition for Compression of Convolutional Neural Networks", NeurIPS 2025
(arXiv:2511.04494), on other networks. ``--data`` names a folder with a ``reference.py`` that loads both networks and
both sets of labelled images; there is no substitute for it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from kernels import DATA, load_module
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from common.table import show_cells

import lowrank_plugin

NETWORKS = {"resnet18": ("imagenet", 224), "resnet20": ("cifar10", 32)}
"""For each network the images it was trained on and the side of its input."""

BATCH = 32


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with reference.py")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--budget", type=float, default=0.5, help="share of the MACs that may remain")
    parser.add_argument("--images", type=int, default=512, help="calibration images of each kind")
    parser.add_argument("--validation", type=int, help="validation images; all where left out")
    parser.add_argument("--keep", type=Path, help="folder for the files of statistics")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    if not (options.data / "reference.py").is_file():
        parser.exit(message=f"There is no reference.py in {str(options.data)!r}: give --data.\n")
    reference = load_module(options.data / "reference.py")
    rows = []
    for name in options.networks:
        rows += compared(reference, name, options.budget, options.images, options.validation, options.keep)
        print(f"{name}: {rows[-2:]}", flush=True)
    _show(rows, f"{options.budget:g} of the MACs, {options.images} images behind the statistics, no repair")
    if options.json:
        facts = {"budget": options.budget, "images": options.images, "rows": rows}
        options.json.write_text(json.dumps(facts, indent=2) + "\n")


def compared(
    reference: ModuleType, name: str, budget: float, images: int, validation: int | None, keep: Path | None
) -> list[dict[str, Any]]:
    """One network compressed with statistics of each kind of images.

    :param reference: loads networks and images.
    :param name: of the network.
    :param budget: share of the MACs that may remain.
    :param images: calibration images of each kind.
    :param validation: validation images; None for all.
    :param keep: folder for the files of statistics, or None.
    """
    build, own = reference.MODELS[name]
    kind, side = NETWORKS[name]
    model = build().eval()
    pixels, labels = own("validation")
    inputs, labels = reference.normalize(pixels[:validation]), labels[:validation]
    original = _outputs(model, inputs)
    rows = []
    for source in ("imagenet", "cifar10"):
        seen = lowrank_plugin.collect_statistics(model, _resized(reference, source, images, side))
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            seen.save(keep / f"{name}-{source}.safetensors")
        small = lowrank_plugin.decompose(model, statistics=seen, budget={"macs": budget}, repair="none")
        measured = reference.compare(_outputs(small, inputs), original, labels)
        top1 = reference.compare(original, original, labels)["top1"]
        rows.append(
            {"network": name, "trained_on": kind, "statistics": source, "samples": seen.samples, "original": top1}
            | measured
        )
    return rows


def _resized(reference: ModuleType, source: str, count: int, side: int) -> list[Tensor]:
    pixels = getattr(reference, source)("calibration")[0][:count]
    images = reference.normalize(pixels)
    if images.shape[-1] != side:
        images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
    return list(images.split(BATCH))


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    return torch.cat([model(batch) for batch in inputs.split(50)])


def _show(rows: list[dict[str, Any]], title: str) -> None:
    measured = ("top-1 %", "agreement %", "KL")
    header = ["Network", "Original top-1 %", *(f"{whose}: {each}" for whose in ("own", "foreign") for each in measured)]
    lines = []
    for name in dict.fromkeys(row["network"] for row in rows):
        of_network = [row for row in rows if row["network"] == name]
        of_network.sort(key=lambda row: row["statistics"] != row["trained_on"])
        cells = [[f"{row['top1']:.2f}", f"{row['agreement']:.2f}", f"{row['kl']:.3f}"] for row in of_network]
        lines.append([name, f"{of_network[0]['original']:.2f}", *cells[0], *cells[1]])
    show_cells(title, header, lines)


if __name__ == "__main__":
    main()
