# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Offers a name that is taken."""

from __future__ import annotations

from collections.abc import Iterator

from lowrank_hooks import DecomposerRecord, hookimpl
from lowrank_plugin.solvers.svd import Svd


@hookimpl
def lowrank_decomposers() -> Iterator[DecomposerRecord]:
    """Offer another decomposer named ``"svd"``."""
    yield DecomposerRecord("svd", Svd(), "not the built-in one")
