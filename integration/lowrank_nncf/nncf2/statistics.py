# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""NNCF's statistics, with a place for the low-rank report."""

from __future__ import annotations

from collections.abc import Iterator

from nncf.api.statistics import Statistics as AlgorithmStatistics
from nncf.common import composite_compression
from nncf.common.statistics import NNCFStatistics

from lowrank_nncf.nncf2.config import NAME
from lowrank_plugin.host import Report


class Statistics(NNCFStatistics):
    """NNCF's own take the statistics of its own algorithms only.

    >>> statistics = Statistics()
    >>> statistics.register("lowrank", Report({"layers": {}}))
    >>> [name for name, _ in statistics]
    ['lowrank']

    :ivar lowrank: the per-layer report of the decomposition; None where the config has no such section.
    """

    lowrank: Report | None = None

    def register(self, algorithm_name: str, stats: Report | AlgorithmStatistics) -> None:
        """Take the statistics of an algorithm.

        :param algorithm_name: its name.
        :param stats: a value with the method ``to_str``.
        """
        if algorithm_name == NAME:
            self.lowrank = stats
        else:
            super().register(algorithm_name, stats)

    def to_str(self) -> str:
        """Return a text with a table of the layers."""
        return "\n\n".join(stats.to_str() for _, stats in self)

    def __iter__(self) -> Iterator[tuple[str, Report | AlgorithmStatistics]]:
        if self.lowrank is not None:
            yield NAME, self.lowrank
        yield from super().__iter__()


def register_statistics() -> None:
    """Have several algorithms together report with these statistics."""
    composite_compression.NNCFStatistics = Statistics
