# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The host's config says what the model's outputs are."""

from __future__ import annotations

import nncf
import pytest
from torch import nn

import lowrank_nncf

SECTION = {"algorithm": "lowrank", "budget": {"macs": 0.6}, "decomposers": ["svd"]}


@pytest.mark.parametrize("norm", ["covariance", "two-sided"])
def test_an_output_may_be_of_values(model: nn.Module, dataset: nncf.Dataset, norm: str) -> None:
    section = {**SECTION, "norm": norm, "output": {"kind": "values"}}
    controller, _ = lowrank_nncf.create_compressed_model(model, {"compression": [section]}, dataset)
    told = controller.statistics().to_dict()["lowrank"]
    assert told["unit"] == "relative squared error"
    assert told["settings"]["output"] == {"kind": "values", "axis": 1}
    assert "(relative squared error)" in controller.statistics().to_str()


def test_a_mistake_is_named(model: nn.Module, dataset: nncf.Dataset) -> None:
    section = {**SECTION, "output": {"logits": {"kind": "sofmax"}}}
    with pytest.raises(nncf.ValidationError, match='expected "softmax", "sigmoid", "values"'):
        lowrank_nncf.create_compressed_model(model, {"compression": [section]}, dataset)
