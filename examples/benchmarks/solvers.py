# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Tucker-2 against TensorLy and against the published covariance-weighted scheme, on ResNet-18's 3x3 kernels.

    python examples/benchmarks/solvers.py [--data FOLDER] [--json FILE] [--baseline LAYER ...]

All ranks are half of each mode. Seconds are the least of ``--repeats`` runs, alternating between the methods.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import kernels
import torch
from tucker_baseline import three_blocks

from lowrank_hooks import Norm, Problem
from lowrank_plugin.solvers.tensorly.conversion import from_tucker_tensor, pytorch_backend
from lowrank_plugin.solvers.tucker2 import Tucker2


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def tensorly(layer: kernels.Layer, rank: tuple[int, int]) -> Any:
    """TensorLy's defaults: HOSVD start, at most 100 iterations, tolerance 1e-4."""
    from tensorly.decomposition import partial_tucker

    with pytorch_backend():
        return partial_tucker(layer.kernel.flatten(2), rank, modes=[0, 1])[0]


def compare(layer: kernels.Layer, repeats: int) -> dict[str, Any]:
    """Plain and weighted Tucker-2 beside TensorLy's plain one, at half ranks."""
    rank = (layer.kernel.shape[0] // 2, layer.kernel.shape[1] // 2)
    plain = Problem(layer.kernel[None])
    weighted = Problem(layer.kernel[None], Norm(layer.covariance[None]))
    moment = Problem(layer.kernel[None], Norm((layer.covariance + layer.mean[:, None] * layer.mean)[None]))
    seconds: dict[str, list[float]] = {"tensorly": [], "plain": [], "weighted": []}
    for _ in range(repeats):
        spent, theirs = timed(lambda: tensorly(layer, rank))
        seconds["tensorly"].append(spent)
        spent, ours = timed(lambda: Tucker2().fit(plain, rank))
        seconds["plain"].append(spent)
        spent, aware = timed(lambda: Tucker2().fit(weighted, rank))
        seconds["weighted"].append(spent)
    chain = from_tucker_tensor([theirs], (3, 3))
    return {
        "layer": layer.name,
        "rank": list(rank),
        "seconds": {name: min(runs) for name, runs in seconds.items()},
        "residual": {"tensorly": plain.relative_error(chain), "plain": ours.statistics["relative_error"]},
        "output_error": {
            "tensorly": weighted.relative_error(chain),
            # What a user of the plain decomposition gets: its bias is not corrected for the mean input.
            "tensorly, bias as it was": weighted_error(moment, chain, float(weighted.energy)),
            "plain": weighted.relative_error(ours.value),
            "weighted": aware.statistics["relative_error"],
        },
        "status": aware.status.name,
        "iterations": {"plain": ours.statistics["iterations"], "weighted": aware.statistics["iterations"]},
    }


def weighted_error(problem: Problem, chain: Any, energy: float) -> float:
    difference = problem.matrix - chain.to_kernel().reshape_as(problem.matrix)
    return (float(problem.norm.squared(difference).sum()) / energy) ** 0.5


def against_published(layer: kernels.Layer, iterations: int, repeats: int) -> dict[str, Any]:
    """Weighted Tucker-2 beside the published three-block scheme."""
    rank = (layer.kernel.shape[0] // 2, layer.kernel.shape[1] // 2)
    problem = Problem(layer.kernel[None], Norm(layer.covariance[None]))
    runs = [timed(lambda: Tucker2().fit(problem, rank)) for _ in range(repeats)]
    history = list(islice(three_blocks(layer.kernel.flatten(2), layer.covariance, rank), iterations))
    runs += [timed(lambda: Tucker2().fit(problem, rank)) for _ in range(repeats)]
    return {
        "layer": layer.name,
        "rank": list(rank),
        "published": {
            "errors": [error for error, _, _ in history],
            "seconds": history[-1][1],
            "products": [products for _, _, products in history],
        },
        "ours": {
            "errors": runs[0][1].statistics["errors"],
            "error": runs[0][1].statistics["relative_error"],
            "seconds": min(spent for spent, _ in runs),
        },
    }


def print_layers(rows: list[dict[str, Any]]) -> dict[str, Any]:
    print(f"\n{'layer':16s}{'seconds':>27s}{'plain residual':>22s}{'output error':>24s}")
    print(
        f"{'':16s}{'tensorly':>9s}{'plain':>9s}{'weighted':>9s}{'tensorly':>13s}{'plain':>9s}"
        f"{'tensorly':>13s}{'weighted':>11s}"
    )
    for row in rows:
        s, r, e = row["seconds"], row["residual"], row["output_error"]
        print(
            f"{row['layer']:16s}{s['tensorly']:9.3f}{s['plain']:9.3f}{s['weighted']:9.3f}"
            f"{r['tensorly']:13.5f}{r['plain']:9.5f}{e['tensorly']:13.4f}{e['weighted']:11.4f}"
        )
    total = {name: sum(row["seconds"][name] for row in rows) for name in rows[0]["seconds"]}

    def median(name: str, power: int) -> float:
        errors = [row["output_error"] for row in rows]
        return statistics.median((error["weighted"] / error[name]) ** power for error in errors)

    summary = {
        "seconds": total,
        "plain: times faster than tensorly": total["tensorly"] / total["plain"],
        "plain: largest residual over tensorly's": max(
            row["residual"]["plain"] / row["residual"]["tensorly"] for row in rows
        ),
        "weighted: share of tensorly's time": total["weighted"] / total["tensorly"],
        "weighted: output error over HOOI's, median": median("tensorly", 1),
        "weighted: squared output error over HOOI's, median": median("tensorly", 2),
        "weighted: output error over HOOI's with its bias uncorrected, median": median("tensorly, bias as it was", 1),
    }
    print()
    for name, value in summary.items():
        print(
            f"{name}: "
            + (f"{value:.4f}" if isinstance(value, float) else ", ".join(f"{k} {v:.2f}" for k, v in value.items()))
        )
    return summary


def print_published(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        theirs, ours = row["published"], row["ours"]
        print(
            f"\n{row['layer']}: published scheme, errors "
            + " ".join(f"{e:.5f}" for e in theirs["errors"])
            + f", {theirs['seconds']:.1f} s, MINRES products {theirs['products']}"
        )
        print(
            f"{'':{len(row['layer'])}}  two blocks, errors "
            + " ".join(f"{e:.5f}" for e in ours["errors"])
            + f", {ours['seconds']:.3f} s: {theirs['seconds'] / ours['seconds']:.0f} times faster"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=kernels.DATA, help="folder with reference.py, if there is one")
    parser.add_argument("--images", type=int, default=256, help="calibration images for the covariances")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each method")
    parser.add_argument("--layers", nargs="*", default=None, help="only these layers")
    parser.add_argument(
        "--baseline",
        nargs="*",
        default=["layer2.0.conv2", "layer3.0.conv2"],
        help="layers on which the published scheme runs; it is slow",
    )
    parser.add_argument("--baseline-iterations", type=int, default=6)
    parser.add_argument("--json", type=Path, default=None, help="where to write the results")
    arguments = parser.parse_args()
    source, layers = kernels.load(arguments.data, arguments.images)
    print(f"{source}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    chosen = [layer for layer in layers if arguments.layers is None or layer.name in arguments.layers]
    rows = [compare(layer, arguments.repeats) for layer in chosen]
    summary = print_layers(rows) if rows else {}
    published = [
        against_published(layer, arguments.baseline_iterations, arguments.repeats)
        for layer in layers
        if layer.name in arguments.baseline
    ]
    print_published(published)
    if arguments.json is not None:
        report = {
            "source": source,
            "threads": torch.get_num_threads(),
            "layers": rows,
            "summary": summary,
            "published": published,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
