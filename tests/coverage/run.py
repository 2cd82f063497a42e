# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Compress many networks, check each, and write the table of what holds.

    python tests/coverage/run.py --quick
    python tests/coverage/run.py --family torchvision --json coverage.json --markdown COVERAGE.md

Every network has a process of its own with limits of time and memory: one that crashes is one row. Rows are added to
those that stand in the JSON file already, where it is given; a row that was run again takes the place of the old one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from networks import networks

DISTRIBUTIONS = (
    "lowrank-plugin", "torch", "torchvision", "timm", "transformers", "peft", "ultralytics",
    "segmentation-models-pytorch", "openvino",
)  # fmt: skip
"""Those whose versions are told."""

PRELOADED = ["row", "openvino", "torchvision", "timm", "transformers.modeling_utils", "ultralytics", "peft"]
"""Imports that are slow; those that are not installed are left out."""

PATIENCE = 10
"""How many times the processor time a row may take by the clock, on a machine that has other things to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows that are asked for.

    :param arguments: of the command line.
    :return: how many rows are wrong, at most 100.
    """
    options = _options(arguments)
    planned = networks()
    known = _read(options.json)
    asked = [
        each
        for each in planned
        if (not options.quick or each.quick)
        and (options.family is None or each.family.startswith(options.family))
        and (not options.only or each.name in options.only)
        and not (options.missing and (each.family, each.name) in known)
    ]
    verdicts: Counter[str] = Counter()
    for place, network in enumerate(asked):
        row = _apart(planned.index(network), options)
        row["date"], row["versions"] = f"{datetime.now(timezone.utc):%Y-%m-%d}", _versions()
        known[network.family, network.name] = row
        verdicts[row["verdict"]] += 1
        told = "; ".join([row["verdict"], *row["wrong"]])
        print(f"{place + 1}/{len(asked)} {network.family}: {network.name} ({row['seconds'].get('row')} s) {told}")
        sys.stdout.flush()
        _write(options, [known[key] for each in planned if (key := (each.family, each.name)) in known], planned)
    print(f"{len(asked)} rows run: {dict(verdicts)}.")
    return min(verdicts["wrong"], 100)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compress many networks and check each.")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only networks of these names")
    parser.add_argument("--family", help="only families whose name begins so, such as timm")
    parser.add_argument("--quick", action="store_true", help="only the few that make test runs")
    parser.add_argument("--missing", action="store_true", help="only rows that the JSON file does not have yet")
    parser.add_argument("--json", type=Path, help="a file that rows are added to")
    parser.add_argument("--markdown", type=Path, help="a file for the table")
    parser.add_argument("--seconds", type=float, default=300.0, help="the most processor time for one network")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="the most memory for one network")
    parser.add_argument("--widest", type=int, help="leave out layers with more columns (inputs times taps)")
    return parser.parse_args(arguments)


def _apart(place: int, options: argparse.Namespace) -> dict[str, Any]:
    """A row, made in a process of its own.

    :param place: of the network in the table.
    """
    # a server that has imported what all rows need: a row starts at once, and knows nothing of the row before
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(place, options, sender))
    process.start()
    sender.close()
    try:
        if receiver.poll(PATIENCE * options.seconds):
            return receiver.recv()
        ended = f"it took more than {PATIENCE * options.seconds:.0f} seconds"
    except EOFError:
        process.join(10)
        ended = f"its process ended with {process.exitcode}"
        if process.exitcode == -signal.SIGXCPU:
            ended = f"it took more than {options.seconds:.0f} seconds of processor time"
    finally:
        process.kill()
        process.join()
    from row import Row

    network = networks()[place]
    return Row(network.family, network.name, wrong=[ended]).to_json()


def _work(place: int, options: argparse.Namespace, sender: Connection) -> None:
    import torch
    from row import row_of

    torch.set_num_threads(1)
    memory, seconds = int(options.gigabytes * 1024**3), int(options.seconds)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    sender.send(row_of(networks()[place], options.widest).to_json())
    sender.close()


def _read(file: Path | None) -> dict[tuple[str, str], Any]:
    if file is None or not file.exists():
        return {}
    return {(row["family"], row["name"]): row for row in json.loads(file.read_text())["rows"]}


def _write(options: argparse.Namespace, rows: list[Any], planned: Sequence[Any]) -> None:
    if options.json:
        options.json.write_text(json.dumps({"planned": len(planned), "rows": rows}, indent=1) + "\n")
    if options.markdown:
        from table import markdown

        options.markdown.write_text(markdown(rows, [(each.family, each.name) for each in planned]))


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


if __name__ == "__main__":
    sys.exit(main())
