# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Some of a layer's input patches, drawn at random without a copy of the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowrank_hooks import LayerAdapter, Window, Windowed


def draw(
    adapter: LayerAdapter, module: nn.Module, inputs: Tensor, outputs: Tensor, wanted: float, generator: torch.Generator
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
    kernel = adapter.kernel(module)
    windows = adapter.windows(module) if isinstance(adapter, Windowed) else None
    if windows is not None and inputs.dim() == len(windows) + 2:
        leading = (outputs.shape[0], *outputs.shape[2:])
        if wanted < math.prod(leading):
            places = _places(leading, wanted, generator)
            return _seen_through(windows, inputs, places).unflatten(1, (len(kernel), -1)).flatten(2)
    view = adapter.patches(module, inputs)
    return draw_positions(view, view.dim() - kernel.dim() + 1, wanted, generator).flatten(2)


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


def _seen_through(windows: Sequence[Window], inputs: Tensor, places: tuple[Tensor, ...]) -> Tensor:
    """Windows of [B, C, *size] at some places, [N, C, *taps]; nothing else is padded or copied."""
    axes = len(windows)
    sample, *positions = (each.to(inputs.device).reshape(-1, *(1,) * axes) for each in places)
    outside = torch.zeros((), dtype=torch.bool, device=inputs.device)
    index = [sample]
    for axis, (window, position) in enumerate(zip(windows, positions, strict=True)):
        tap = torch.arange(window.taps, device=inputs.device) * window.dilation
        source = position * window.stride + tap.reshape(-1, *(1,) * (axes - 1 - axis)) - window.before
        last = inputs.shape[2 + axis] - 1
        outside = outside | (source < 0) | (source > last)
        index.append(source.clamp(0, last))
    patches = inputs.movedim(1, -1)[tuple(index)].masked_fill(outside.unsqueeze(-1), 0)
    return patches.movedim(-1, 1)
