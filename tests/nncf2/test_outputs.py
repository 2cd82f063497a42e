# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""NNCF's config says what the model's outputs are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nncf
import pytest
from torch import nn

import lowrank_plugin

SECTION = {"algorithm": "lowrank", "budget": {"macs": 0.6}, "decomposers": ["svd"]}


def test_an_output_may_be_of_values(model: nn.Module, compress: Callable[..., tuple[Any, nn.Module]]) -> None:
    _, compressed = compress(model, {**SECTION, "output": {"0": {"kind": "values"}}})
    told = lowrank_plugin.report(compressed).to_dict()
    assert told["unit"] == "relative squared error"
    assert told["settings"]["output"] == {"0": {"kind": "values", "axis": 1}}


def test_a_mistake_is_named() -> None:
    section = {**SECTION, "output": {"logits": {"kind": "sofmax"}}}
    with pytest.raises(nncf.ValidationError, match='expected "softmax", "sigmoid", "values"'):
        nncf.NNCFConfig.from_dict({"compression": section})
