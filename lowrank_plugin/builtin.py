# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What comes with this package, registered through the same hooks that third parties use."""

from __future__ import annotations

from collections.abc import Iterator

from lowrank_hooks import (
    CostContext,
    CostModelRecord,
    DecomposerRecord,
    LayerAdapterRecord,
    MeasuredCost,
    RankPolicyRecord,
    hookimpl,
)
from lowrank_plugin.costs import counted
from lowrank_plugin.layers.adapters import CONVOLUTIONS, ConvAdapter, LinearAdapter
from lowrank_plugin.ranks import policies

LARGEST_CPD = 2_500_000
"""Weights of a kernel beyond which a CP decomposition takes minutes on a few cores; 512 x 512 x 3 x 3 is below."""


@hookimpl
def lowrank_decomposers() -> Iterator[DecomposerRecord]:
    """The built-in decomposers."""
    from lowrank_plugin.solvers import Cpd, SpatialSvd, Svd, Tucker2, Tucker2Cpd, Tucker2Spatial
    from lowrank_plugin.solvers.tensorly import parafac, partial_tucker

    convolutions, planes = frozenset({1, 2, 3}), frozenset({2})
    yield DecomposerRecord("svd", Svd(), "kxk then 1x1; for a linear layer the plain pair")
    yield DecomposerRecord("spatial_svd", SpatialSvd(), "kx1 then 1xk", planes)
    yield DecomposerRecord("tucker2", Tucker2(), "1x1, kxk, 1x1", convolutions)
    cp = "1x1, depthwise kxk, 1x1, with bounded sensitivity"
    yield DecomposerRecord("cpd", Cpd(), cp, convolutions, largest=LARGEST_CPD, int8=False)
    # these compete only where they are named: their curves take longer, and they hardly ever win
    compared = "TensorLy's own, for comparison"
    rest = (
        ("tucker2_spatial", Tucker2Spatial(), "1x1, kx1, 1xk, 1x1", planes),
        ("tucker2_cpd", Tucker2Cpd(), "1x1, cpd of the Tucker core, 1x1", convolutions),
        ("tensorly:partial_tucker", partial_tucker.TensorlyPartialTucker(), compared, convolutions),
        ("tensorly:parafac", parafac.TensorlyParafac(), compared, convolutions),
    )
    for name, decomposer, summary, axes in rest:
        yield DecomposerRecord(name, decomposer, summary, axes, automatic=False)


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
    """MACs, parameters and measured latency."""
    yield CostModelRecord("macs", counted.macs, "multiply-accumulates for one sample")
    yield CostModelRecord("parameters", counted.parameters, "number of weights")
    yield CostModelRecord("latency", summary="measured milliseconds in the runtime of the settings", measure=_latency)


def _latency(context: CostContext) -> MeasuredCost:
    from lowrank_plugin.costs import latency

    return latency.measure(context)


@hookimpl
def lowrank_rank_policies() -> Iterator[RankPolicyRecord]:
    """Lagrangian, uniform, energy, zhang and evbmf."""
    from lowrank_plugin.solvers.noise import noise_level

    yield RankPolicyRecord("lagrangian", policies.lagrangian, "least expected loss under the budget")
    yield RankPolicyRecord("uniform", policies.uniform, "one ratio for every layer")
    yield RankPolicyRecord("energy", policies.energy, "least bound on the relative errors of all layers")
    yield RankPolicyRecord("zhang", policies.zhang, "largest product of the retained energies")
    yield RankPolicyRecord("evbmf", policies.evbmf, "nothing kept that is noise by EVBMF", inspect=noise_level)
