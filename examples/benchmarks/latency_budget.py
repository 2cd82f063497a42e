# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A latency budget against a MACs budget of equal latency, on ResNet-18 in OpenVINO.

    python examples/benchmarks/latency_budget.py --budget 0.6 --json latency_budget.json

``--data`` names a folder with a ``reference.py`` that loads the trained network and images, as for ``accuracy.py``. The
two MACs budgets that give just less and just more than the latency of the other network are found by bisection. In the
end all networks, with their real weights, are measured side by side, apart from what the budget itself measured, and
what MACs give at equal latency is interpolated.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from kernels import DATA, load_module
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from common import measure
from common.processor import avoid_missing_tiles
from common.table import show_cells

import lowrank_plugin
from lowrank_plugin.flow.choosing import choices_of
from lowrank_plugin.flow.compressing import compress
from lowrank_plugin.flow.meter import meter_of
from lowrank_plugin.flow.problems import look
from lowrank_plugin.flow.sources import FromData
from lowrank_plugin.flow.starting import start
from lowrank_plugin.plugins import manager
from lowrank_plugin.ranks.allocation import chains_of
from lowrank_plugin.settings import Settings
from lowrank_plugin.support.progress import SILENT

RUNTIME = {"backend": "openvino", "precision": "fp32"}
BATCH, STEPS = 32, 6
APART = 0.02
"""MACs by which the two networks lie below and above where the bisection ended: single measurements err by more."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with reference.py")
    parser.add_argument("--model", default="resnet18", help="a key of reference.MODELS")
    parser.add_argument("--budget", type=float, default=0.6, help="share of the latency that may remain")
    parser.add_argument("--calibration", type=int, default=512, help="calibration images")
    parser.add_argument("--validation", type=int, default=650, help="validation images")
    parser.add_argument("--seconds", type=float, default=60.0, help="time spent on the final measurement")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    avoid_missing_tiles()
    if not (options.data / "reference.py").is_file():
        raise SystemExit(f"There is no reference.py in {str(options.data)!r}: give a folder with trained networks.")
    reference = load_module(options.data / "reference.py")
    build, images_of = reference.MODELS[options.model]
    model: nn.Module = build()
    batches = list(reference.normalize(images_of("calibration")[0][: options.calibration]).split(BATCH))
    images, labels = (values[: options.validation] for values in images_of("validation"))

    start = time.perf_counter()
    section = {"budget": {"latency": options.budget}, "runtime": RUNTIME}
    networks = {"original": model, "latency budget": lowrank_plugin.decompose(model, batches, **section)}
    seconds = {"original": 0.0, "latency budget": time.perf_counter() - start}
    told = lowrank_plugin.report(networks["latency budget"]).to_dict()["model"]["latency"]
    print(f"latency budget {options.budget:g}: {told[1] / told[0]:.3f} remains, {seconds['latency budget']:.0f} s")
    start = time.perf_counter()
    found = of_about_latency(model, batches, told[1] / told[0])
    names = ("MACs budget, faster", "MACs budget, slower")
    networks |= dict(zip(names, found, strict=True))
    seconds |= dict.fromkeys(names, time.perf_counter() - start)

    latencies = measured(networks, batches[0][:1], options.seconds)
    outputs = {name: reference.logits(network, images) for name, network in networks.items()}
    rows = [
        {
            "network": name,
            "macs": measure.size(network, batches[0][:1]).macs / measure.size(model, batches[0][:1]).macs,
            "milliseconds": latencies[name],
            "latency": latencies[name] / latencies["original"],
            **reference.compare(outputs[name], outputs["original"], labels),
            "seconds": seconds[name],
        }
        for name, network in networks.items()
    ]
    title = f"{options.model}, {options.budget:g} of the latency, OpenVINO {metadata.version('openvino')}, batch 1"
    show(rows, f"{title}, {len(images)} validation images")
    _, ours, *theirs = rows
    equal = between(ours["latency"], *((row["latency"], row["kl"]) for row in theirs))
    print(f"KL at a latency of {ours['latency']:.3f}: {ours['kl']:.4f} by latency, {equal:.4f} by MACs (interpolated)")
    if options.json:
        figures = {"model": options.model, "budget": options.budget, "kl of macs at equal latency": equal}
        options.json.write_text(json.dumps({**figures, "rows": rows}, indent=2))


def between(place: float, first: tuple[float, float], second: tuple[float, float]) -> float:
    """The value at a place on the line through two points."""
    return first[1] + (place - first[0]) * (second[1] - first[1]) / (second[0] - first[0])


def of_about_latency(model: nn.Module, batches: list[Tensor], latency: float) -> list[nn.Module]:
    """Compress to the MACs with which networks measure a little less and a little more of the original's latency.

    :param model: the network.
    :param batches: calibration images.
    :param latency: the share.
    """
    settings = Settings.from_mapping({"budget": {"macs": 0.5}, "runtime": RUNTIME})
    source = FromData(batches)
    subject = start(model, source, None, settings, manager(), SILENT)
    meter, problems = meter_of(subject), look(subject, source)
    choice = choices_of(problems, meter)
    candidates = choice.candidates
    low, high = candidates.least, 1.0
    for _ in range(STEPS):
        share = (low + high) / 2
        before, after = meter.network(chains_of(candidates.within_share(share)))
        print(f"  {share:.3f} of the MACs: {after / before:.3f} of the latency")
        low, high = (low, share) if after / before > latency else (share, high)
    middle = (low + high) / 2
    plans = [choice.write(candidates.within_share(middle + side * APART)) for side in (-1, 1)]
    return [compress(problems, plan, inplace=False).model for plan in plans]


def measured(networks: dict[str, nn.Module], sample: Tensor, seconds: float) -> dict[str, float]:
    """Milliseconds of one inference, side by side."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = {}
        for index, (name, network) in enumerate(networks.items()):
            path = Path(folder) / f"{index}.xml"
            measure.save_openvino(network, sample, path)
            compiled[name] = measure.compile_openvino(path)
        return measure.latencies(compiled, sample, seconds)


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print the figures as a table."""
    columns = {"macs": ".3f", "milliseconds": ".2f", "latency": ".3f"}
    columns |= {"top1": ".2f", "agreement": ".2f", "kl": ".3f", "seconds": ".0f"}
    cells = ([row["network"], *(f"{row[key]:{form}}" for key, form in columns.items())] for row in rows)
    show_cells(title, ("Network", "MACs", "ms", "Latency", "Top-1 %", "Agreement %", "KL", "Seconds"), cells)


if __name__ == "__main__":
    main()
