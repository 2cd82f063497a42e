# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""ConvTranspose2d as a convolution over its input with zeros put between the pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_hooks import Factorization, LayerAdapterRecord, Stage, StageShape, hookimpl

AXES = (0, 1)


class TransposedConvAdapter:
    """The kernel is the weight with its taps reversed, [G, T, S, kh, kw].

    >>> layer = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
    >>> adapter = TransposedConvAdapter()
    >>> adapter.kernel(layer).shape, adapter.patches(layer, torch.zeros(5, 4, 8, 8)).shape
    (torch.Size([2, 3, 2, 3, 3]), torch.Size([5, 17, 17, 2, 2, 3, 3]))
    """

    def refusal(self, module: Any) -> str | None:
        """As for a convolution, depthwise layers have nothing to factorise across channels."""
        return "depthwise: each group has a single input channel" if module.in_channels == module.groups else None

    def kernel(self, module: Any) -> Tensor:
        """[G, T, S, kh, kw]."""
        return self.to_kernel(module, module.weight.detach())

    def to_kernel(self, module: Any, weight: Tensor) -> Tensor:
        """[G * S, T, kh, kw] to [G, T, S, kh, kw]."""
        return weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flip(-2, -1)

    def to_weight(self, module: Any, kernel: Tensor) -> Tensor:
        """[G, T, S, kh, kw] to [G * S, T, kh, kw]."""
        return kernel.flip(-2, -1).transpose(1, 2).flatten(0, 1)

    def patches(self, module: Any, inputs: Tensor) -> Tensor:
        """[B, H, W, G, S, kh, kw], a view of the input with zeros between and around its pixels."""
        if inputs.dim() == 3:
            inputs = inputs.unsqueeze(0)
        height, width = ((size - 1) * step + 1 for size, step in zip(inputs.shape[-2:], module.stride, strict=True))
        spread = inputs.new_zeros(*inputs.shape[:2], height, width)
        spread[..., :: module.stride[0], :: module.stride[1]] = inputs
        spans = [(size - 1) * gap for size, gap in zip(module.kernel_size, module.dilation, strict=True)]
        around: list[int] = []
        for axis in reversed(AXES):
            before = spans[axis] - module.padding[axis]
            around += [before, before + module.output_padding[axis]]
        windows = F.pad(spread, around)
        for axis in AXES:
            windows = windows.unfold(axis + 2, spans[axis] + 1, 1)[..., :: module.dilation[axis]]
        return windows.unflatten(1, (module.groups, -1)).permute(0, 3, 4, 1, 2, 5, 6)

    def outputs(self, module: Any, outputs: Tensor) -> Tensor:
        """[B, H, W, G, T], a view."""
        if outputs.dim() == 3:
            outputs = outputs.unsqueeze(0)
        return outputs.movedim(1, -1).unflatten(-1, (module.groups, -1))

    def positions(self, module: Any, stages: Sequence[StageShape], inputs: Tensor, outputs: Tensor) -> tuple[int, ...]:
        """A transposed convolution multiplies once for each pixel that enters it, so an axis grows after its stage."""
        samples = inputs.shape[0] if inputs.dim() == 4 else 1
        before, after = inputs.shape[-2:], outputs.shape[-2:]
        owners = _owners(module.kernel_size, [stage.kernel_size for stage in stages])
        return tuple(
            samples * math.prod(after[axis] if index > owners[axis] else before[axis] for axis in AXES)
            for index in range(len(stages))
        )

    def build(self, module: Any, factorization: Factorization, bias: Tensor | None) -> nn.Sequential:
        """Transposed convolutions; on each axis one of them takes stride, padding, output padding and dilation."""
        owners = _owners(module.kernel_size, [shape.kernel_size for shape in factorization.shapes])
        chain: list[nn.Module] = []
        for index, (stage, shape) in enumerate(zip(factorization.stages, factorization.shapes, strict=True)):
            last = index == len(factorization.stages) - 1

            def mine(values: Sequence[int], other: int, index: int = index) -> tuple[int, ...]:
                return tuple(values[axis] if owners[axis] == index else other for axis in AXES)

            layer = nn.ConvTranspose2d(
                module.groups * shape.in_channels,
                module.groups * shape.out_channels,
                shape.kernel_size,
                stride=mine(module.stride, 1),
                padding=mine(module.padding, 0),
                output_padding=mine(module.output_padding, 0),
                groups=module.groups * shape.groups,
                bias=last and bias is not None,
                dilation=mine(module.dilation, 1),
                device="meta",
            )
            chain.append(_assign(layer, _to_weight(stage), bias if last else None))
        return nn.Sequential(*chain)

    def to_dense(self, module: nn.Sequential) -> nn.Module:
        """One transposed convolution with the multiplied-out kernel."""
        chain: list[Any] = list(module)
        groups = reduce(math.gcd, (layer.groups for layer in chain))
        stages = tuple(_to_stage(layer, groups) for layer in chain)
        kernel = Factorization(stages).to_kernel()

        def largest(name: str) -> tuple[int, ...]:
            return tuple(max(getattr(layer, name)[axis] for layer in chain) for axis in AXES)

        bias = chain[-1].bias
        layer = nn.ConvTranspose2d(
            chain[0].in_channels,
            chain[-1].out_channels,
            tuple(kernel.shape[3:]),
            stride=largest("stride"),
            padding=largest("padding"),
            output_padding=largest("output_padding"),
            groups=groups,
            bias=bias is not None,
            dilation=largest("dilation"),
            device="meta",
        )
        return _assign(layer, _to_weight(Stage(kernel)), bias).train(module.training)


def _owners(kernel_size: Sequence[int], stages: Sequence[Sequence[int]]) -> list[int]:
    """For each axis the stage that has all of its taps."""
    return [next(index for index, taps in enumerate(stages) if taps[axis] == kernel_size[axis]) for axis in AXES]


def _to_weight(stage: Stage) -> Tensor:
    """[G, out, in / g, kh, kw] to torch's [G * in, out / g, kh, kw], taps reversed again."""
    blocks = stage.weight.unflatten(1, (stage.groups, -1)).transpose(2, 3)
    return blocks.flatten(0, 2).flip(-2, -1)


def _to_stage(layer: Any, groups: int) -> Stage:
    inner = layer.groups // groups
    blocks = layer.weight.detach().flip(-2, -1).unflatten(0, (groups, inner, -1))
    return Stage(blocks.transpose(2, 3).flatten(1, 2), inner)


def _assign(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


@hookimpl
def lowrank_layer_adapters() -> Iterator[LayerAdapterRecord]:
    """Offer the adapter."""
    yield LayerAdapterRecord(
        "ConvTranspose2d", nn.ConvTranspose2d, TransposedConvAdapter(), "transposed convolution with 2 spatial axes"
    )
