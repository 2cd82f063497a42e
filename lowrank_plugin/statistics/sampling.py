# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Some of a layer's input patches, drawn at random without a copy of the rest."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lowrank_hooks import LayerAdapter
from lowrank_plugin.layers.adapters import ConvAdapter


def draw(
    adapter: LayerAdapter, module: Any, inputs: Tensor, outputs: Tensor, wanted: float, generator: torch.Generator
) -> Tensor:
    """Draw patches of a layer; all where there are no more than wanted.

    :param adapter: how the layer is seen.
    :param module: the layer.
    :param inputs: its input.
    :param outputs: its output.
    :param wanted: about how many to draw.
    :param generator: a generator on the CPU.
    :return: [N, G, S*K], a copy unless it is all of them.
    """
    batched = inputs.dim() == adapter.kernel(module).dim() - 1
    if type(adapter) is ConvAdapter and module.padding_mode == "zeros" and batched:
        leading = (outputs.shape[0], *outputs.shape[2:])
        if wanted < math.prod(leading):
            return _convolved(module, inputs, _places(leading, wanted, generator)).flatten(2)
    view = adapter.patches(module, inputs)
    return draw_positions(view, view.dim() - adapter.kernel(module).dim() + 1, wanted, generator).flatten(2)


def draw_positions(view: Tensor, axes: int, wanted: float, generator: torch.Generator) -> Tensor:
    """Draw vectors from a view without copying the rest of it.

    :param view: [*positions, ...] with ``axes`` leading position axes.
    :param axes: how many leading axes count positions.
    :param wanted: about how many to draw; all where there are fewer.
    :param generator: a generator on the CPU.
    :return: [N, ...], a copy unless it is all of them.
    """
    leading = view.shape[:axes]
    if wanted >= math.prod(leading):
        return view.reshape(math.prod(leading), *view.shape[axes:])
    return view[tuple(each.to(view.device) for each in _places(leading, wanted, generator))]


def _places(leading: tuple[int, ...], wanted: float, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Distinct places on the leading axes: an index tensor [N] for each of them, on the CPU."""
    chosen = torch.randperm(math.prod(leading), generator=generator)[: math.ceil(wanted)]
    return torch.unravel_index(chosen, leading)


def _convolved(module: Any, inputs: Tensor, places: tuple[Tensor, ...]) -> Tensor:
    """Patches of a zero-padded convolution at some places, [N, G, S, *kernel]; nothing else is padded or copied."""
    axes = len(module.kernel_size)
    sample, *positions = (each.to(inputs.device).reshape(-1, *(1,) * axes) for each in places)
    sides = module._reversed_padding_repeated_twice
    outside: Any = False
    index = [sample]
    for axis, position in enumerate(positions):
        tap = torch.arange(module.kernel_size[axis], device=inputs.device) * module.dilation[axis]
        tap = tap.reshape(-1, *(1,) * (axes - 1 - axis))
        source = position * module.stride[axis] + tap - sides[-2 * axis - 2]
        last = inputs.shape[2 + axis] - 1
        outside = outside | (source < 0) | (source > last)
        index.append(source.clamp(0, last))
    patches = inputs.movedim(1, -1)[tuple(index)].masked_fill(outside.unsqueeze(-1), 0)
    return patches.movedim(-1, 1).unflatten(1, (module.groups, -1))
