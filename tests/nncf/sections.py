# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Sections of a config that tests combine, by short names."""

from __future__ import annotations

from typing import Any

import nncf
from torch import nn

import lowrank_nncf

LOWRANK = {"algorithm": "lowrank", "ranks": {"conv": 8, "head": 8}, "decomposers": ["svd"]}
SECTIONS: dict[str, dict[str, Any]] = {
    "lowrank": LOWRANK,
    "magnitude": {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5},
    "rb": {"algorithm": "rb_sparsity"},
    "quantization": {"algorithm": "quantization"},
}


def compress(
    model: nn.Module, dataset: nncf.Dataset, *names: str
) -> tuple[lowrank_nncf.CompressionController, nn.Module]:
    """Compress as the sections of these names say."""
    config = {"input_info": {"sample_size": [1, 3, 12, 12]}, "compression": [SECTIONS[name] for name in names]}
    return lowrank_nncf.create_compressed_model(model, config, dataset)
