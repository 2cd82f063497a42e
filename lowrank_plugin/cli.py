# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The ``lowrank`` command."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from rich.console import Console
from rich.table import Table

from lowrank_hooks import CompressionAlgorithmRecord
from lowrank_plugin.plugins import COMPRESSION_ALGORITHMS, KINDS, Registered, manager

HOSTS = "lowrank.hosts"
"""Entry-point group under which hosts name their algorithms, a mapping of records by name.

An entry point has the name of the module of its framework: where that one is not installed, the host is passed over.
"""

_PIPED_WIDTH = 160


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :param arguments: what follows the command's name; those of the process where it is left out.
    :return: the exit status: 1 where a plugin failed to load.
    """
    parser = argparse.ArgumentParser(prog="lowrank", description="Low-rank compression of PyTorch networks.")
    commands = parser.add_subparsers(required=True)
    plugins = commands.add_parser("plugins", help="list what is installed, built in or by third parties")
    plugins.add_argument("--json", action="store_true", help="as a JSON value")
    plugins.set_defaults(run=lambda parsed: _plugins(parsed.json))
    parsed = parser.parse_args(arguments)
    status: int = parsed.run(parsed)
    return status


def list_plugins() -> list[dict[str, Any]]:
    """Everything that plugins offer, and the algorithms of the hosts that are installed.

    >>> [row["name"] for row in list_plugins() if row["kind"] == "cost model"]
    ['macs', 'parameters', 'latency']

    :return: a row for each record: kind, name, summary, distribution and version.
    """
    found: list[tuple[str, Registered[Any]]] = [
        (kind.name, entry) for kind in KINDS for entry in manager().registered(kind).values()
    ]
    found += [(COMPRESSION_ALGORITHMS.name, entry) for entry in _host_algorithms()]
    return [
        {
            "kind": kind,
            "name": entry.record.name,
            "summary": entry.record.summary,
            "distribution": entry.distribution,
            "version": entry.version,
        }
        for kind, entry in found
    ]


def _host_algorithms() -> list[Registered[CompressionAlgorithmRecord]]:
    """The algorithms that hosts bring along; found by entry point, because the core knows no host."""
    found = []
    for entry_point in metadata.entry_points(group=HOSTS):
        name, version = (
            (entry_point.dist.name, entry_point.dist.version) if entry_point.dist else (entry_point.name, "")
        )
        try:
            algorithms = entry_point.load()
        except Exception as error:  # noqa: BLE001 - whatever a host's import raises is reported, not ours to name
            if not (isinstance(error, ModuleNotFoundError) and error.name == entry_point.name):
                msg = f"The host {entry_point.name!r} of {name} could not be loaded: {type(error).__name__}: {error}"
                manager().fail(msg, error)
            continue
        found += [Registered(record, name, version) for record in algorithms.values()]
    return found


def _plugins(as_json: bool) -> int:
    rows, failures = list_plugins(), manager().failures
    if as_json:
        json.dump({"plugins": rows, "failures": failures}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        table = Table()
        for column in ("Kind", "Name", "Summary", "Distribution", "Version"):
            # names are there to be copied: they are never cut
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row.values())
        console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
        console.print(table)
        for failure in failures:
            console.print(failure, style="red", markup=False)
    return 1 if failures else 0
