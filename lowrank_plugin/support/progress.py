# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""How far the work has come: one call shows a bar and tells the observers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from lowrank_hooks import StepEvent

T = TypeVar("T")


class Progress(Protocol):
    """Wraps an iterable in a progress bar, as NNCF's ``track`` and rich's do."""

    def __call__(self, items: Iterable[Any], *, description: str, total: int | None) -> Iterable[Any]:
        """The items, with a bar that moves when they are taken."""
        ...


def no_progress(items: Iterable[T], *, description: str = "", total: int | None = None) -> Iterable[T]:
    """Show nothing."""
    return items


def _ignore(event: StepEvent) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Steps:
    """Who hears of the steps of the flow.

    >>> steps = Steps(observe=lambda event: print(event.step, event.done, event.total))
    >>> for batch in steps.each("collect", "Collecting statistics", ["first", "second"]):
    ...     print(batch)
    first
    collect 1 2
    second
    collect 2 2

    :param progress: shows bars.
    :param observe: is told of each unit of work that is done.
    """

    progress: Progress = no_progress
    observe: Callable[[StepEvent], None] = _ignore

    def each(self, step: str, description: str, items: Sequence[T], layers: Sequence[str] | None = None) -> Iterator[T]:
        """Go through items; one is done when the next is asked for.

        :param step: the name of the step, see :class:`lowrank_hooks.StepEvent`.
        :param description: for the bar.
        :param items: units of work.
        :param layers: the layer that each item is about, where it is about one.
        """
        for done, item in enumerate(self.progress(items, description=description, total=len(items)), start=1):
            yield item
            self.observe(StepEvent(step, done, len(items), None if layers is None else layers[done - 1]))

    def groups(self, step: str, description: str, groups: Sequence[Sequence[str]]) -> Iterator[Sequence[str]]:
        """Go through groups of layers that are worked on together; the unit is a layer all the same.

        >>> list(Steps().groups("fit", "Fitting layers", [["conv1", "conv2"], ["fc"]]))
        [['conv1', 'conv2'], ['fc']]

        :param step: the name of the step.
        :param description: for the bar.
        :param groups: the names of the layers, no group empty and no name twice.
        """
        names, first = [name for group in groups for name in group], {group[0]: group for group in groups}
        for done, name in enumerate(self.progress(names, description=description, total=len(names)), start=1):
            if name in first:
                yield first[name]
            self.observe(StepEvent(step, done, len(names), name))


SILENT = Steps()
"""Nobody hears of anything."""
