# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The built-in decomposers run the conformance kit that third parties run."""

from __future__ import annotations

from typing import Any

from lowrank_hooks.testing import DecomposerConformance, cases
from lowrank_plugin.plugins import DECOMPOSERS, manager

CP = {"inexact": "the CP rank of a kernel is not known beforehand", "curve_factor": None}
FEW = {
    "spatial_axes": frozenset({2}),
    "cases": classmethod(lambda cls: [each for each in cases({2}) if each.name not in ("conv2d-covariance",)]),
}
# TensorLy solves in the Frobenius norm, so in another norm a higher rank may be worse
OTHER_NORM = {"curve_tolerance": 0.25}
DIFFERENT: dict[str, dict[str, Any]] = {
    # its curve extrapolates what more sweeps would gain
    "cpd": {**CP, **FEW, "curve_tolerance": 0.25},
    "tucker2_cpd": {**CP, **FEW},
    # its curve ends where the chain is no smaller than the kernel; ranks above the largest useful ones are lowered
    "tucker2_spatial": {
        "exact_rank": lambda self, shape: (shape.out_channels, shape.in_channels, shape.in_channels * shape.taps)
    },
    "tensorly:partial_tucker": OTHER_NORM,
    "tensorly:parafac": {**CP, **FEW, **OTHER_NORM},
}

for _name, _entry in manager().registered(DECOMPOSERS).items():
    _class = "Test" + _name.title().replace("_", "").replace(":", "")
    _attributes = {"decomposer": _entry.record.decomposer, "spatial_axes": _entry.record.spatial_axes}
    globals()[_class] = type(_class, (DecomposerConformance,), {**_attributes, **DIFFERENT.get(_name, {})})
