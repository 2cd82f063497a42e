# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Messages and progress of the core and the hosts, shown the way NNCF shows its own."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from nncf.common.logging import nncf_logger
from nncf.common.logging.track_progress import track

T = TypeVar("T")


class _ToNncf(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        nncf_logger.handle(record)


@contextmanager
def nncf_logging() -> Iterator[None]:
    """Send what the core and the host log to NNCF's logger, at NNCF's level, until the context ends.

    Modules log under their own names, so the loggers of the two packages speak for all of them.
    """
    with ExitStack() as stack:
        for package in ("lowrank_plugin", "lowrank_nncf"):
            stack.enter_context(_sent_to_nncf(logging.getLogger(package)))
        yield


@contextmanager
def _sent_to_nncf(logger: logging.Logger) -> Iterator[None]:
    handler, level, propagate = _ToNncf(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(nncf_logger.level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Show NNCF's progress bar while the core goes through ``items``.

    >>> sum(progress([1, 2, 3], "Adding", total=3))
    6

    :param items: what is gone through.
    :param description: shown before the bar.
    :param total: how many there are; None where it is unknown.
    """
    return track(items, description=description, total=total)
