# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The built-in decomposers run the conformance kit that third parties run."""

from __future__ import annotations

from typing import Any

from lowrank_hooks.testing import DecomposerConformance
from lowrank_plugin.plugins import DECOMPOSERS, manager

CP = {"inexact": "the CP rank of a kernel is not known beforehand"}
# TensorLy solves in the Frobenius norm, whatever norm the errors are reported in
TENSORLY = {"aware": False}
DIFFERENT: dict[str, dict[str, Any]] = {
    # the curves of both extrapolate what more sweeps would gain
    "cpd": {**CP, "curve_tolerance": 0.25},
    "tucker2_cpd": {**CP, "curve_tolerance": 0.2},
    # its curve ends where the chain is no smaller than the kernel; ranks above the largest useful ones are lowered
    "tucker2_spatial": {
        "exact_rank": lambda self, shape: (shape.out_channels, shape.in_channels, shape.in_channels * shape.taps)
    },
    # so in another norm a higher rank may be worse
    "tensorly:partial_tucker": {**TENSORLY, "curve_tolerance": 0.2},
    "tensorly:parafac": {**CP, **TENSORLY},
}

for _name, _entry in manager().registered(DECOMPOSERS).items():
    _class = "Test" + _name.title().replace("_", "").replace(":", "")
    _attributes = {"decomposer": _entry.record.decomposer, "spatial_axes": _entry.record.spatial_axes}
    globals()[_class] = type(_class, (DecomposerConformance,), {**_attributes, **DIFFERENT.get(_name, {})})
