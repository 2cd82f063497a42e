# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What comes with this package, registered through the same hooks that third parties use."""

from __future__ import annotations

from collections.abc import Iterator

from lowrank_hooks import CostModelRecord, DecomposerRecord, LayerAdapterRecord, RankPolicyRecord, hookimpl
from lowrank_plugin import costs, policies
from lowrank_plugin.adapters import CONVOLUTIONS, ConvAdapter, LinearAdapter


@hookimpl
def lowrank_decomposers() -> Iterator[DecomposerRecord]:
    """The built-in decomposers."""
    from lowrank_plugin.solvers.spatial_svd import SpatialSvd
    from lowrank_plugin.solvers.svd import Svd
    from lowrank_plugin.solvers.tucker2 import Tucker2

    convolutions = frozenset({1, 2, 3})
    yield DecomposerRecord("svd", Svd(), "kxk then 1x1; for a linear layer the plain pair")
    yield DecomposerRecord("spatial_svd", SpatialSvd(), "kx1 then 1xk", frozenset({2}))
    yield DecomposerRecord("tucker2", Tucker2(), "1x1, kxk, 1x1", convolutions)


@hookimpl
def lowrank_layer_adapters() -> Iterator[LayerAdapterRecord]:
    """Conv1d, Conv2d, Conv3d and Linear."""
    from torch import nn

    for axes, convolution in CONVOLUTIONS.items():
        yield LayerAdapterRecord(
            convolution.__name__, convolution, ConvAdapter(), f"convolution with {axes} spatial axes"
        )
    yield LayerAdapterRecord("Linear", nn.Linear, LinearAdapter(), "linear layer")


@hookimpl
def lowrank_cost_models() -> Iterator[CostModelRecord]:
    """MACs and parameters."""
    yield CostModelRecord("macs", costs.macs, "multiply-accumulates for one sample")
    yield CostModelRecord("parameters", costs.parameters, "number of weights")


@hookimpl
def lowrank_rank_policies() -> Iterator[RankPolicyRecord]:
    """Lagrangian and uniform."""
    yield RankPolicyRecord("lagrangian", policies.lagrangian, "least sum of squared relative errors under the budget")
    yield RankPolicyRecord("uniform", policies.uniform, "one ratio for every layer")
