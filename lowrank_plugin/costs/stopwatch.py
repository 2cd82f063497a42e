# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""How runs are timed side by side, and on which processor."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

LEAST_ROUNDS, MOST_ROUNDS = 11, 101


LAYER_SECONDS, NETWORKS_SECONDS = 0.02, 3.0
"""Time spent on timing each chain, and whole networks side by side."""


BURST = 4
"""Runs of a network in a row; the first of them, which finds the caches cold, is not counted."""


def interleaved(
    runs: Sequence[Callable[[], object]],
    seconds: float,
    burst: int = 1,
    pick: Callable[[Sequence[float]], float] = statistics.median,
) -> list[float]:
    """The time of each run in milliseconds; they take turns, so that a disturbance meets all alike.

    :param runs: what is to be timed.
    :param seconds: how long to measure in all, unless that is too few rounds or more than are needed.
    :param burst: how often each runs in its turn; of several, the first is not counted.
    :param pick: one time from all of a run. Of what takes less than a scheduler's time slice the least is best: other
        programs only ever add to it.
    """
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds
    for done in range(MOST_ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for run, taken in zip(runs, times, strict=True):
            for index in range(burst):
                start = time.perf_counter()
                run()
                if index or burst == 1:
                    taken.append(time.perf_counter() - start)
    return [1000 * pick(taken) for taken in times]


def in_bursts(runs: Sequence[Callable[[], object]]) -> list[float]:
    """The median time of whole networks in milliseconds, each with the caches as it left them itself.

    :param runs: what is to be timed.
    """
    return interleaved(runs, NETWORKS_SECONDS, BURST)


@cache
def processor() -> str:
    """The model name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
