# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What a model is, to the bit: for tests that it was left as it was."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that a compression could change: tensors, types, modes and gradients."""
    return {
        "tensors": copy.deepcopy(model.state_dict()),
        "modules": {name: (type(module), module.training) for name, module in model.named_modules()},
        "gradients": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "hooks": {name: len(module._forward_hooks) for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
    }


def assert_same_state(model: nn.Module, before: dict[str, Any]) -> None:
    after = state_of(model)
    assert before["tensors"].keys() == after["tensors"].keys()
    assert all(torch.equal(before["tensors"][key], after["tensors"][key]) for key in before["tensors"])
    assert {**before, "tensors": None} == {**after, "tensors": None}
