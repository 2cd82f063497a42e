# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Weights rounded in place of NNCF's bias correction: where that can be done, and the grids of its quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from nncf.torch.function_hook.hook_storage import decode_hook_name
from nncf.torch.quantization.layers import BaseQuantizer
from torch import nn

from lowrank_nncf.nncf3.model.wrapping import hooks
from lowrank_plugin.rounding import Grid

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def applies(model: nn.Module, section: Mapping[str, Any]) -> bool:
    """Whether the weights can be rounded here; otherwise they and the biases are left to NNCF.

    Not where pruning masks lie on them, where NNCF scales the inputs of layers (SmoothQuant, for transformers), or
    where convolutions or linear layers are of other classes than torch's own.

    :param model: the model before it is quantized.
    :param section: the section ``"quantization"``.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)]
    free = next(hooks(model), None) is None and "model_type" not in section
    return free and all(type(layer) in _KINDS for layer in layers)


def grids(model: nn.Module) -> dict[str, Grid]:
    """The values that the weights of convolutions and linear layers may take.

    :param model: a model that ``nncf.quantize`` returned.
    :return: by layer name, float64; no value is larger than the largest that a weight of its channel is rounded to now,
        so that NNCF's protection against overflow is kept.
    """
    modules = dict(model.named_modules())
    found = {}
    for name, quantizer in hooks(model, (BaseQuantizer,)):
        _, operation, port = decode_hook_name(name)
        layer = ".".join(operation.split("/")[:-2])
        if port == 1 and isinstance(modules.get(layer), _KINDS):
            found[layer] = _grid(quantizer, modules[layer].weight)
    return found


@torch.no_grad()
def _grid(quantizer: Any, weight: torch.Tensor) -> Grid:
    low, high = (each.double().reshape(-1, 1) for each in quantizer.get_input_low_input_high())
    bound = quantizer(weight).double().flatten(1).abs().amax(dim=1, keepdim=True)
    step = ((high - low) / (quantizer.levels - 1)).expand_as(bound)
    return Grid(step, torch.maximum(low, -bound), torch.minimum(high, bound))
