# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""How long a compressed ResNet-18 takes to save and to restore, against compressing it again.

    python examples/benchmarks/restore.py --json restore.json

Restoring means reading the file, building the structure in a fresh network and loading the weights. Nothing is solved
and no data are read; the restored network's outputs must equal the saved one's to the bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nncf
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from common.images import Images, load_model
from common.table import show_cells

import lowrank_nncf

DATA = ROOT.parent / "shared" / "data"
MODEL = "torchvision:resnet18"
LOWRANK = {"algorithm": "lowrank", "budget": {"macs": 0.5}}
PRUNING = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5}
INT8 = {"algorithm": "quantization"}
# the later versions start from the low-rank network, so that its factors are solved for only once
VERSIONS = {
    "low-rank": ("original", [LOWRANK]),
    "low-rank + int8": ("low-rank", [INT8]),
    "low-rank + pruning + int8": ("low-rank", [PRUNING, INT8]),
}


@dataclass(frozen=True)
class Measured:
    """One version of the network.

    :param name: of the version.
    :param compress: seconds it took to make, with those of the version it was made from.
    :param save: seconds to write its file, the median of several.
    :param restore: seconds to read it into a fresh network, the median of several.
    :param slowest_restore: seconds of the slowest.
    :param bytes: of the file.
    :param equal: whether the outputs are equal to the bit.
    """

    name: str
    compress: float
    save: float
    restore: float
    slowest_restore: float
    bytes: int
    equal: bool


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark.

    :param arguments: of the command line; None takes those of the process.
    """
    parser = argparse.ArgumentParser(prog="python examples/benchmarks/restore.py", description=(__doc__ or "").strip())
    parser.add_argument("--data", type=Path, help="folder with imagenet/resnet18.safetensors and imagenet/calibration")
    parser.add_argument("--samples", type=int, default=64, help="calibration images (default: 64)")
    parser.add_argument("--repeats", type=int, default=5, help="how often to save and to restore (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    options = parser.parse_args(arguments)
    model, images = _task(options.data or (DATA if DATA.is_dir() else None), options.samples)
    rows = measured(model, images, options.repeats)
    _show(rows)
    if options.json:
        versions = {name: version(name) for name in ("torch", "nncf", "safetensors")}
        facts = {"samples": options.samples, "repeats": options.repeats, "threads": torch.get_num_threads(), **versions}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**facts, "versions": [asdict(row) for row in rows]}, indent=2) + "\n")


def measured(model: nn.Module, images: Any, repeats: int) -> list[Measured]:
    """Compress a network in every version, save and restore each.

    :param model: the network, in eval mode.
    :param images: a data set of images with labels, which are not used.
    :param repeats: how often to save and to restore.
    """
    dataset = nncf.Dataset(DataLoader(images, batch_size=16), lambda item: item[0])
    sample = torch.stack([images[index][0] for index in range(4)])
    models, seconds, rows = {"original": model}, {"original": 0.0}, []
    for name, (source, sections) in VERSIONS.items():
        config = {"input_info": {"sample_size": [1, 3, 224, 224]}, "compression": sections}
        start = time.perf_counter()
        controller, models[name] = lowrank_nncf.create_compressed_model(models[source], config, dataset)
        seconds[name] = seconds[source] + time.perf_counter() - start
        rows.append(_row(name, controller, sample, seconds[name], repeats))
    return rows


def _row(
    name: str, controller: lowrank_nncf.CompressionController, sample: torch.Tensor, seconds: float, repeats: int
) -> Measured:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.safetensors"
        save, _ = _timed(lambda: lowrank_nncf.save(path, controller), repeats)
        fresh = load_model(MODEL, None, log=lambda text: None)
        restore, (_, restored) = _timed(lambda: lowrank_nncf.load(path, fresh), repeats)
        equal = torch.equal(restored(sample), controller.model(sample))
        return Measured(
            name, seconds, *map(statistics.median, (save, restore)), max(restore), path.stat().st_size, equal
        )


def _timed(function: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return times, result


def _task(data: Path | None, samples: int) -> tuple[nn.Module, Any]:
    if data is not None:
        images = Images(data / "imagenet" / "calibration")
        model = load_model(MODEL, data / "imagenet" / "resnet18.safetensors")
        return model, Subset(images, range(min(samples, len(images))))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(samples, 3, 224, 224, generator=generator)
    return load_model(MODEL, None), TensorDataset(noise, torch.zeros(samples, dtype=torch.long))


def _show(rows: list[Measured]) -> None:
    cells = []
    for row in rows:
        times = (f"{value:.2f} s" for value in (row.save, row.restore, row.slowest_restore))
        equal = "bit-equal" if row.equal else "differ"
        cells.append([row.name, f"{row.bytes / 1e6:.1f} MB", f"{row.compress:.1f} s", *times, equal])
    header = ("", "file", "compress", "save", "restore", "slowest", "outputs")
    show_cells("ResNet-18: saved and restored", header, cells)


if __name__ == "__main__":
    main()
