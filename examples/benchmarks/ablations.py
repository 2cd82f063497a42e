# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Every default against its alternatives: norm x policy x decomposers x repair on one network.

    python examples/benchmarks/ablations.py --model resnet20 --json ablations.json
    python examples/benchmarks/ablations.py --norms covariance --repairs none moments

``--data`` names a folder with a ``reference.py``, as for ``accuracy.py``; without one the digits of scikit-learn are
used. The data are looked at once for all runs, and the three repairs start from the same fits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from accuracy import Task, load_task
from kernels import DATA
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from common.table import show_cells

import lowrank_plugin
from lowrank_plugin.flow.choosing import choose
from lowrank_plugin.flow.compressing import compress
from lowrank_plugin.flow.problems import Problems, look
from lowrank_plugin.flow.sources import FromStatistics
from lowrank_plugin.flow.starting import start
from lowrank_plugin.plugins import manager
from lowrank_plugin.settings import Settings
from lowrank_plugin.support.progress import SILENT

NORMS = ("frobenius", "covariance", "two-sided")
POLICIES = {"one ratio": "uniform", "allocated": "lagrangian"}
DECOMPOSERS: dict[str, Any] = {"tucker2": ["tucker2", "svd"], "cpd": ["cpd", "svd"], "auto": "auto"}
REPAIRS = ("none", "moments", "distill")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with reference.py")
    parser.add_argument("--model", default="resnet18", help="a key of reference.MODELS")
    parser.add_argument("--budget", type=float, default=0.5, help="share of the MACs that may remain")
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=NORMS)
    parser.add_argument("--decomposers", nargs="+", choices=DECOMPOSERS, default=list(DECOMPOSERS))
    parser.add_argument("--repairs", nargs="+", choices=REPAIRS, default=REPAIRS)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    task = load_task(options.data, options.model)
    reference = task.logits(task.model)
    statistics = lowrank_plugin.collect_statistics(task.model, task.batches)
    rows = []
    for norm, policy, names in itertools.product(options.norms, POLICIES, options.decomposers):
        section = {"norm": norm, "policy": POLICIES[policy], "decomposers": DECOMPOSERS[names]}
        settings = Settings.from_mapping({"budget": {"macs": options.budget}, **section})
        source = FromStatistics(statistics, task.batches)
        problems = look(start(task.model, source, None, settings, manager(), SILENT), source)
        for found in repaired(problems, task, reference, options.repairs):
            rows.append({"norm": norm, "policy": policy, "decomposers": names, **found})
            print(rows[-1], flush=True)
        if options.json:
            options.json.write_text(json.dumps({"model": task.name, "budget": options.budget, "rows": rows}, indent=2))
    show(rows, options.repairs, f"{task.name}, {options.budget:g} of the MACs: top-1 in per cent, KL in nats")


def repaired(problems: Problems, task: Task, reference: Tensor, repairs: list[str]) -> list[dict[str, Any]]:
    """Accuracy after each repair of the same chains."""
    plan, solved, found = choose(problems, None), {}, []
    for repair in repairs:
        begin = time.perf_counter()
        subject = problems.subject
        problems.subject = replace(subject, settings=replace(subject.settings, repair=repair))
        small = compress(problems, plan, inplace=False, solved=solved).model
        seconds = time.perf_counter() - begin
        found.append({"repair": repair, **task.compare(task.logits(small), reference), "seconds": seconds})
    return found


def show(rows: list[dict[str, Any]], repairs: list[str], title: str) -> None:
    """Print the figures as a table, a column for each repair."""
    lines = []
    for begin in range(0, len(rows), len(repairs)):
        same = rows[begin : begin + len(repairs)]
        cells = (f"{row['top1']:.2f}  {row['kl']:.3f}" for row in same)
        lines.append([*(same[0][key] for key in ("norm", "policy", "decomposers")), *cells])
    show_cells(title, ("Norm", "Policy", "Decomposers", *repairs), lines, names=3)


if __name__ == "__main__":
    main()
