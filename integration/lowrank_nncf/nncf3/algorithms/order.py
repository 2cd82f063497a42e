# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The order in which a config's algorithms must come, from what each of them declares."""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter

from lowrank_hooks import CompressionAlgorithmRecord
from lowrank_nncf.errors import ConfigurationError, PluginError
from lowrank_nncf.nncf3.sections import PRUNING


def check_order(algorithms: Sequence[CompressionAlgorithmRecord]) -> None:
    """Raise unless the algorithms of a config come once each and in an order that all of them accept.

    >>> first = CompressionAlgorithmRecord("first", lambda *_: None)
    >>> last = CompressionAlgorithmRecord("last", lambda *_: None, after=frozenset({"first"}))
    >>> check_order([first, last])

    :param algorithms: in the order of the config.
    :raises ConfigurationError: where one appears twice or too early; says the right order.
    :raises nncf.InstallationError: where what they declare contradicts itself.
    """
    names = [algorithm.name for algorithm in algorithms]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        msg = f"Algorithm {repeated!r} appears {names.count(repeated)} times in config['compression']; give it once."
        raise ConfigurationError(msg)
    pruning = [name for name in names if name in PRUNING]
    if len(pruning) > 1:
        msg = (
            f"config['compression'] names {' and '.join(map(repr, pruning))}, which both prune: the second would "
            "work on weights that the first has masked. Choose one."
        )
        raise ConfigurationError(msg)
    earlier: dict[str, set[str]] = {name: set() for name in names}
    for algorithm in algorithms:
        earlier[algorithm.name] |= algorithm.after & set(names)
        for other in algorithm.before & set(names):
            earlier[other].add(algorithm.name)
    wrong = [(name, other) for index, name in enumerate(names) for other in names[index:] if other in earlier[name]]
    if wrong:
        reasons = ", ".join(f"{name!r} must come after {other!r}" for name, other in wrong)
        msg = (
            f"The sections of config['compression'] come in the order {', '.join(names)}. The order must be "
            f"{', '.join(_sorted(names, earlier))}: {reasons}, because an algorithm must see the layers that the one "
            "before it leaves."
        )
        raise ConfigurationError(msg)


def _sorted(names: Sequence[str], earlier: dict[str, set[str]]) -> list[str]:
    """The names in an order that all accept, as near to the given one as the constraints leave it."""
    sorter = TopologicalSorter(earlier)
    try:
        sorter.prepare()
    except CycleError as error:
        msg = (
            f"The algorithms {', '.join(names)} cannot be used together: what they declare about their order goes in a "
            f"circle ({' before '.join(error.args[1])})."
        )
        raise PluginError(msg) from error
    found: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=names.index)
        found += ready
        sorter.done(*ready)
    return found
