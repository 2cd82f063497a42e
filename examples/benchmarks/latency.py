# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""OpenVINO latency of a ResNet-18 at 224x224, one image at a time: the original, int8, low-rank, and both.

    python examples/benchmarks/latency.py --json latency.json

With ``--data``, a folder that holds ``imagenet/resnet18.safetensors`` and ``imagenet/calibration/``, real weights and
images are used; otherwise random ones, on which time depends hardly at all but the ranks do.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from common import table  # noqa: E402
from common.images import Images, load_model  # noqa: E402
from common.versions import Task, measured  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
MODEL = "torchvision:resnet18"


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark.

    :param arguments: of the command line; None takes those of the process.
    """
    parser = argparse.ArgumentParser(prog="python examples/benchmarks/latency.py", description=(__doc__ or "").strip())
    parser.add_argument("--data", type=Path, help="folder with imagenet/resnet18.safetensors and imagenet/calibration")
    parser.add_argument("--budget", type=float, default=0.5, help="share of the MACs that may remain (default: 0.5)")
    parser.add_argument("--seconds", type=float, default=40.0, help="time spent measuring (default: 40)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--output", type=Path, default=Path("demo-output/latency"), help="folder for OpenVINO files")
    options = parser.parse_args(arguments)
    task = _task(options.data or (DATA if DATA.is_dir() else None))
    rows = measured(task, options.output, options.budget, "enable", options.seconds)
    table.show(rows, f"{task.name}: OpenVINO {version('openvino')} on {_processor()}")
    if options.json:
        facts = {
            "task": task.name,
            "budget": options.budget,
            "processor": _processor(),
            "threads": torch.get_num_threads(),
        }
        table.write_json(rows, options.json, **facts, openvino=version("openvino"))


def _task(data: Path | None) -> Task:
    if data is not None:
        model = load_model(MODEL, data / "imagenet" / "resnet18.safetensors")
        return Task("ResNet-18", model, Images(data / "imagenet" / "calibration"))
    print("No --data: the weights and the images are random.")
    generator = torch.Generator().manual_seed(0)
    noise = TensorDataset(torch.randn(64, 3, 224, 224, generator=generator), torch.zeros(64, dtype=torch.long))
    return Task("ResNet-18 with random weights", load_model(MODEL, None), noise)


def _processor() -> str:
    import openvino

    return openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")


if __name__ == "__main__":
    main()
