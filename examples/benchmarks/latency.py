# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""OpenVINO latency of a ResNet-18 at 224x224, one image at a time: the original, int8, low-rank, and both.

    python examples/benchmarks/latency.py --json latency.json
    ONEDNN_MAX_CPU_ISA=AVX2 python examples/benchmarks/latency.py --json latency-avx2.json

The second command keeps OpenVINO to the instructions of processors without AVX-512 and VNNI. With ``--data``, a folder
that holds ``imagenet/resnet18.safetensors``, ``imagenet/calibration/`` and ``imagenet/validation/``, real weights and
images are used and accuracy is measured too; otherwise random ones, on which time depends hardly at all but the ranks
do.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from common import table
from common.images import Images, load_model
from common.processor import VARIABLE
from common.versions import Task, measured

DATA = ROOT.parent / "shared" / "data"
MODEL = "torchvision:resnet18"


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark.

    :param arguments: of the command line; None takes those of the process.
    """
    parser = argparse.ArgumentParser(prog="python examples/benchmarks/latency.py", description=(__doc__ or "").strip())
    parser.add_argument("--data", type=Path, help="folder with imagenet/resnet18.safetensors and images")
    parser.add_argument("--budget", type=float, default=0.5, help="share of the MACs that may remain (default: 0.5)")
    parser.add_argument("--decomposers", choices=("int8", "auto"), default="int8", help="which may compete")
    parser.add_argument("--seconds", type=float, default=40.0, help="time spent measuring (default: 40)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--output", type=Path, default=Path("demo-output/latency"), help="folder for OpenVINO files")
    options = parser.parse_args(arguments)
    task = _task(options.data or (DATA if DATA.is_dir() else None))
    rows = measured(task, options.output, options.budget, "enable", options.seconds, decomposers=options.decomposers)
    table.show(rows, f"{task.name}: OpenVINO {version('openvino')} on {_processor()}")
    ratios = speed_ups({row.name: row.latency for row in rows})
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f} x")
    if options.json:
        facts = {
            "task": task.name,
            "budget": options.budget,
            "processor": _processor(),
            "instruction_set": os.environ.get(VARIABLE, "all"),
            "threads": torch.get_num_threads(),
            "speed_ups": ratios,
        }
        table.write_json(rows, options.json, **facts, openvino=version("openvino"))


def speed_ups(latencies: Mapping[str, float]) -> dict[str, float]:
    """How much faster the smallest version is than others.

    >>> speed_ups({"original": 9.0, "int8": 4.5, "lowrank": 5.0, "lowrank + int8": 3.0})
    {'low-rank + int8 over original': 3.0, 'low-rank + int8 over int8': 1.5, 'low-rank over original': 1.8}

    :param latencies: milliseconds, by version.
    """
    both = latencies["lowrank + int8"]
    return {
        "low-rank + int8 over original": latencies["original"] / both,
        "low-rank + int8 over int8": latencies["int8"] / both,
        "low-rank over original": latencies["original"] / latencies["lowrank"],
    }


def _task(data: Path | None) -> Task:
    if data is not None:
        model = load_model(MODEL, data / "imagenet" / "resnet18.safetensors")
        calibration, validation = (Images(data / "imagenet" / name) for name in ("calibration", "validation"))
        return Task("ResNet-18", model, calibration, validation)
    print("No --data: the weights and the images are random.")
    generator = torch.Generator().manual_seed(0)
    noise = TensorDataset(torch.randn(64, 3, 224, 224, generator=generator), torch.zeros(64, dtype=torch.long))
    return Task("ResNet-18 with random weights", load_model(MODEL, None), noise)


def _processor() -> str:
    import openvino

    return openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")


if __name__ == "__main__":
    main()
