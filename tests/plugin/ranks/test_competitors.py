# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Who competes: by default, for a network that is to be quantized, and by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lowrank_plugin
from lowrank_hooks import KernelShape
from lowrank_plugin.builtin import LARGEST_CPD
from lowrank_plugin.plugins import manager
from lowrank_plugin.ranks.proposals import competitors, takes
from lowrank_plugin.settings import Settings

BUDGET = {"macs": 0.5}


def names(shape: KernelShape, **section: Any) -> set[str]:
    records = competitors(Settings.from_mapping({"budget": BUDGET, **section}), manager())
    return {record.name for record in records if takes(record, shape)}


SMALL, LARGE = KernelShape(1, 512, 512, (3, 3)), KernelShape(1, 640, 512, (3, 3))


def test_a_cp_decomposition_competes_for_kernels_of_some_size() -> None:
    assert SMALL.parameters <= LARGEST_CPD < LARGE.parameters
    assert names(SMALL) - names(LARGE) == {"cpd"}
    assert names(SMALL) >= {"svd", "spatial_svd", "tucker2", "cpd"}


def test_by_name_it_competes_for_any() -> None:
    assert names(LARGE, decomposers=["cpd"]) == {"cpd"}


def test_depthwise_stages_do_not_compete_for_int8() -> None:
    assert names(SMALL, decomposers="int8") == names(SMALL) - {"cpd"}


@pytest.mark.parametrize(("decomposers", "wins"), [("auto", True), ("int8", False)])
def test_it_wins_where_the_kernel_is_a_sum_of_its_terms(decomposers: str, wins: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(32, 32, 3, padding=1)
    parts = [torch.randn(32, 24), torch.randn(24, 32), torch.randn(24, 3, 3)]
    convolution.weight.data = torch.einsum("tr,rs,rij->tsij", *parts)
    images = torch.randn(64, 32, 8, 8)
    small = lowrank_plugin.decompose(convolution, [images], budget=BUDGET, decomposers=decomposers)
    assert (lowrank_plugin.report(small).to_dict()["layers"][""]["decomposer"] == "cpd") is wins
