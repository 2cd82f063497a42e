# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A kernel and a norm become a chain: pure functions on tensors, on any device.

Six decomposers, a file each, made of the ``parts`` and of the iterations in ``two_block`` and ``cp``; ``tensorly`` has
TensorLy's own beside them. Nothing here knows of networks, layers or budgets: only of :mod:`lowrank_hooks`.

>>> from lowrank_hooks import Problem
>>> from lowrank_plugin.solvers import Svd
>>> import torch
>>> Svd().fit(Problem(torch.ones(1, 6, 4)), (1,)).value.shapes
(StageShape(out_channels=1, in_channels=4, kernel_size=(), groups=1),
 StageShape(out_channels=6, in_channels=1, kernel_size=(), groups=1))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowrank_plugin.solvers.cpd import Cpd
    from lowrank_plugin.solvers.spatial_svd import SpatialSvd
    from lowrank_plugin.solvers.svd import Svd
    from lowrank_plugin.solvers.tucker2 import Tucker2
    from lowrank_plugin.solvers.tucker2_cpd import Tucker2Cpd
    from lowrank_plugin.solvers.tucker2_spatial import Tucker2Spatial

__all__ = ["Cpd", "SpatialSvd", "Svd", "Tucker2", "Tucker2Cpd", "Tucker2Spatial"]

_HOMES = {
    "Cpd": "cpd",
    "SpatialSvd": "spatial_svd",
    "Svd": "svd",
    "Tucker2": "tucker2",
    "Tucker2Cpd": "tucker2_cpd",
    "Tucker2Spatial": "tucker2_spatial",
}


def __getattr__(name: str) -> object:
    """A decomposer, loaded when it is first asked for: the core imports one of these files only to plan."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
