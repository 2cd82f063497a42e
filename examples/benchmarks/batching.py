# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""CP decomposition of layers of one shape as one batch, against one after another.

    python examples/benchmarks/batching.py [--layers WIDTHxCOUNT ...] [--json FILE]

The kernels are made up, 3x3 with as many outputs as inputs; by default widths and numbers are those of a ResNet-56 for
CIFAR-10 and of a ResNet-18. They are fitted at half of their weights, under a covariance and in the plain norm.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kernels import made_up

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from common.table import show_cells

from lowrank_hooks import Norm, Problem
from lowrank_plugin.solvers.cpd import Cpd

LAYERS = ("16x18", "32x17", "64x17", "64x4", "128x3")


def problems(width: int, count: int, weighted: bool) -> list[Problem]:
    """In the precision that the flow solves layers of these widths in."""
    layers = [made_up(f"{width}.{place}", width, width, place) for place in range(count)]
    return [
        Problem(each.kernel[None].double(), Norm(each.covariance[None].double()) if weighted else Norm())
        for each in layers
    ]


def seconds(work: Callable[[], object]) -> float:
    """The better of two runs."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def compare(width: int, count: int, weighted: bool) -> dict[str, Any]:
    """Curves and fits, one after another and together."""
    asked, method = problems(width, count, weighted), Cpd()
    rank = (9 * width**2 // (2 * (2 * width + 9)),)
    row: dict[str, Any] = {
        "width": width,
        "layers": count,
        "norm": "covariance" if weighted else "frobenius",
        "rank": rank[0],
    }
    row["curves"] = {
        "alone": seconds(lambda: [method.curve(problem) for problem in asked]),
        "together": seconds(lambda: method.curves(asked)),
    }
    row["fits"] = {
        "alone": seconds(lambda: [method.fit(problem, rank) for problem in asked]),
        "together": seconds(lambda: method.fits(asked, rank)),
    }
    alone = [method.fit(problem, rank).statistics["relative_error"] for problem in asked]
    together = [solution.statistics["relative_error"] for solution in method.fits(asked, rank)]
    row["difference"] = max(abs(a - b) / b for a, b in zip(together, alone, strict=True))
    return row


def show(rows: list[dict[str, Any]]) -> None:
    lines = []
    for row in rows:
        cells = [
            f"{row[key]['alone']:.3f}  {row[key]['together']:.3f}  {row[key]['alone'] / row[key]['together']:.1f}x"
            for key in ("curves", "fits")
        ]
        sizes = (str(row[key]) for key in ("width", "layers", "norm", "rank"))
        lines.append([*sizes, *cells, f"{row['difference']:.0e}"])
    header = ("Width", "Layers", "Norm", "Rank", "Curves", "Fits", "Errors differ by")
    show_cells("Seconds alone, together, and their ratio", header, lines, names=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", default=LAYERS, help="widths and numbers of layers, such as 16x18")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="1 on a machine that others use")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = [tuple(int(number) for number in each.split("x")) for each in options.layers]
    rows = [compare(width, count, weighted) for width, count in sizes for weighted in (True, False)]
    show(rows)
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
