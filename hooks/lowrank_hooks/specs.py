# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The hooks. A plugin implements any of them and names its module under the entry-point group ``lowrank``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowrank_hooks.records import (
        CostModelRecord,
        DecomposerRecord,
        LayerAdapterRecord,
        RankPolicyRecord,
        StepEvent,
    )

PROJECT = "lowrank"
_hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Decorates a plugin's implementation of a hook."""


@_hookspec
def lowrank_decomposers() -> Iterable[DecomposerRecord]:
    """Offer ways to factorise a kernel.

    Called once, when the plugins are first needed. Two records of one name are an error that names both distributions.

    >>> from lowrank_hooks import DecomposerRecord, hookimpl
    >>> class MyPlugin:
    ...     @hookimpl
    ...     def lowrank_decomposers(self):
    ...         from lowrank_plugin.solvers.svd import Svd
    ...         yield DecomposerRecord("my_svd", Svd(), summary="a copy of the built-in one")

    :return: the records.
    """
    raise NotImplementedError


@_hookspec
def lowrank_layer_adapters() -> Iterable[LayerAdapterRecord]:
    """Make further module types compressible.

    Called once, when the plugins are first needed. Two records for one module type are an error.

    :return: the records.
    """
    raise NotImplementedError


@_hookspec
def lowrank_cost_models() -> Iterable[CostModelRecord]:
    """Offer units in which a budget may be given.

    Called once, when the plugins are first needed.

    >>> from lowrank_hooks import CostModelRecord, hookimpl
    >>> class Bytes:
    ...     @hookimpl
    ...     def lowrank_cost_models(self):
    ...         yield CostModelRecord("bytes", lambda stages, positions, groups: 4.0 * groups * sum(
    ...             stage.parameters for stage in stages))

    :return: the records.
    """
    raise NotImplementedError


@_hookspec
def lowrank_rank_policies() -> Iterable[RankPolicyRecord]:
    """Offer ways to share a budget among the layers.

    Called once, when the plugins are first needed.

    >>> from lowrank_hooks import RankPolicyRecord, hookimpl
    >>> class Cheapest:
    ...     @hookimpl
    ...     def lowrank_rank_policies(self):
    ...         yield RankPolicyRecord("cheapest", lambda options, budget: {
    ...             name: min(range(len(of_layer)), key=lambda i: of_layer[i].cost)
    ...             for name, of_layer in options.items()})

    :return: the records.
    """
    raise NotImplementedError


@_hookspec
def lowrank_step(event: StepEvent) -> None:
    """Observe the flow, for a progress bar or a log.

    Called after each unit of work, from the thread that does it. What it returns is ignored.

    :param event: what has just been done.
    """
    raise NotImplementedError
