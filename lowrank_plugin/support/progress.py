# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Progress bars, whoever draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Progress = Callable[..., Iterable[Any]]
"""Wraps an iterable in a progress bar: called with the iterable and ``description`` and ``total`` as keywords."""


def no_progress(items: Iterable[Any], *, description: str = "", total: int | None = None) -> Iterable[Any]:
    """Show nothing."""
    return items
