# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Low-rank compression of PyTorch networks: layers become chains of smaller plain torch.nn layers."""

from lowrank_plugin.api import apply, collect_statistics, decompose, plan
from lowrank_plugin.chains.dense import to_dense
from lowrank_plugin.chains.report import report
from lowrank_plugin.chains.state import get_state, restore
from lowrank_plugin.int8.rotation import rotate_chains
from lowrank_plugin.statistics import Statistics

__all__ = [
    "Statistics",
    "apply",
    "collect_statistics",
    "decompose",
    "get_state",
    "plan",
    "report",
    "restore",
    "rotate_chains",
    "to_dense",
]
