# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Weights rounded in place of NNCF's bias correction: where that can be done, and the grids of its quantizers."""

from __future__ import annotations

import torch
from nncf.torch.function_hook.hook_storage import decode_hook_name
from nncf.torch.quantization.layers import BaseQuantizer
from torch import Tensor, nn

from lowrank_hooks import WeightLayout
from lowrank_nncf.nncf3.model.wrapping import hooks
from lowrank_nncf.nncf3.sections import QuantizationSection
from lowrank_plugin.host import RECORD, Calibration, Grid, writable
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager


def applies(model: nn.Module, section: QuantizationSection) -> bool:
    """Whether the weights can be rounded here; otherwise they and the biases are left to NNCF.

    Not where pruning masks lie on them, where NNCF scales the inputs of layers (SmoothQuant, for transformers), or
    where no adapter tells the layout of the weight of a convolution or linear layer.

    >>> applies(nn.Conv2d(3, 4, 3), {}), applies(nn.ConvTranspose2d(3, 4, 3), {})
    (True, False)

    :param model: the model before it is quantized.
    :param section: the section ``"quantization"``.
    """
    adapters = manager().registered(LAYER_ADAPTERS)
    layers = [module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)]
    free = next(hooks(model), None) is None and "model_type" not in section
    return free and all(writable(layer, adapters) is not None for layer in layers)


def memory_gb(model: nn.Module, section: QuantizationSection) -> float:
    """The gigabytes that rounding may take: what the section says, or else what the decomposition was allowed.

    >>> memory_gb(nn.ReLU(), {"calibration": {"memory_gb": 2}}), memory_gb(nn.ReLU(), {})
    (2, 8.0)

    :param model: the model, with the record of its decomposition where there was one.
    :param section: the section ``"quantization"``.
    """
    decomposed = getattr(model, RECORD, {}).get("settings", {}).get("calibration", {})
    limit: float = {"memory_gb": Calibration.memory_gb, **decomposed, **section.get("calibration", {})}["memory_gb"]
    return limit


def grids(model: nn.Module) -> dict[str, Grid]:
    """The values that the weights of convolutions and linear layers may take.

    :param model: a model that ``nncf.quantize`` returned.
    :return: by layer name, float64; no value is larger than the largest that a weight of its channel is rounded to now,
        so that NNCF's protection against overflow is kept.
    """
    modules, adapters, found = dict(model.named_modules()), manager().registered(LAYER_ADAPTERS), {}
    for name, quantizer in hooks(model, (BaseQuantizer,)):
        _, operation, port = decode_hook_name(name)
        layer = ".".join(operation.split("/")[:-2])
        layout = writable(modules[layer], adapters) if port == 1 and layer in modules else None
        if layout is not None:
            found[layer] = _grid(quantizer, modules[layer], layout)
    return found


@torch.no_grad()
def _grid(quantizer: BaseQuantizer, layer: nn.Module, layout: WeightLayout) -> Grid:
    def by_channel(values: Tensor) -> Tensor:
        """[G*T, N] of what is as large as the weight, or the same for many of its entries."""
        return layout.to_kernel(layer, values.double().expand_as(weight)).flatten(0, 1).flatten(1)

    weight = layer.get_parameter("weight")
    low, high = (by_channel(each)[:, :1] for each in quantizer.get_input_low_input_high())
    bound = by_channel(quantizer(weight)).abs().amax(dim=1, keepdim=True)
    return Grid((high - low) / (quantizer.levels - 1), torch.maximum(low, -bound), torch.minimum(high, bound))
