# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The contract between lowrank-plugin and those who extend it: hooks, and the types that cross them."""

from lowrank_hooks.adapter import LayerAdapter, WeightLayout, Window, Windowed
from lowrank_hooks.factorization import Factorization, Stage, StageShape
from lowrank_hooks.norm import NORMS, ErrorNorm, Norm, NormKind, SampledNorm
from lowrank_hooks.problem import (
    BatchDecomposer,
    Decomposer,
    KernelShape,
    PeakMemory,
    Point,
    Problem,
    Rank,
    Solution,
    Status,
)
from lowrank_hooks.records import (
    API_VERSION,
    CompressionAlgorithmRecord,
    CompressionContext,
    CostContext,
    CostModelRecord,
    DecomposerRecord,
    LayerAdapterRecord,
    MeasuredCost,
    Option,
    RankPolicyRecord,
    StepEvent,
)
from lowrank_hooks.specs import PROJECT, hookimpl

__all__ = [
    "API_VERSION",
    "NORMS",
    "PROJECT",
    "BatchDecomposer",
    "CompressionAlgorithmRecord",
    "CompressionContext",
    "CostContext",
    "CostModelRecord",
    "Decomposer",
    "DecomposerRecord",
    "ErrorNorm",
    "Factorization",
    "KernelShape",
    "LayerAdapter",
    "LayerAdapterRecord",
    "MeasuredCost",
    "Norm",
    "NormKind",
    "Option",
    "PeakMemory",
    "Point",
    "Problem",
    "Rank",
    "RankPolicyRecord",
    "SampledNorm",
    "Solution",
    "Stage",
    "StageShape",
    "Status",
    "StepEvent",
    "WeightLayout",
    "Window",
    "Windowed",
    "hookimpl",
]
