# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The built-in layer adapters: Conv1d, Conv2d, Conv3d and Linear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_hooks import Factorization, Stage, StageShape, Window

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

PADS: dict[int, type[nn.Module]] = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}
"""What stands before a chain whose input is padded by more on one side than on the other; by the spatial axes."""

KnownLayer: TypeAlias = Any
"""A convolution or linear layer of torch.nn, or one that has their attributes; nn.Module declares none of these."""


class ConvAdapter:
    """Sees a convolution with any number of spatial axes as a kernel [G, T, S, *kernel]; groups are independent.

    >>> conv = nn.Conv2d(4, 6, 3, groups=2, padding="same")
    >>> adapter = ConvAdapter()
    >>> adapter.kernel(conv).shape
    torch.Size([2, 3, 2, 3, 3])
    >>> adapter.patches(conv, torch.zeros(5, 4, 8, 8)).shape
    torch.Size([5, 8, 8, 2, 2, 3, 3])
    """

    def refusal(self, module: KnownLayer) -> str | None:
        """Depthwise convolutions have nothing to factorise across channels."""
        if module.in_channels == module.groups > 1:
            return "depthwise: each group has a single input channel, so there is nothing to factorise across channels"
        return None

    def kernel(self, module: KnownLayer) -> Tensor:
        """[G, T, S, *kernel]."""
        return self.to_kernel(module, module.weight.detach())

    def to_kernel(self, module: KnownLayer, weight: Tensor) -> Tensor:
        """[G*T, S, *kernel] to [G, T, S, *kernel], a view."""
        return weight.unflatten(0, (module.groups, -1))

    def to_weight(self, module: KnownLayer, kernel: Tensor) -> Tensor:
        """[G, T, S, *kernel] to [G*T, S, *kernel], a view."""
        return kernel.flatten(0, 1)

    def windows(self, module: KnownLayer) -> tuple[Window, ...] | None:
        """Those of the module's stride, dilation and padding; none where it pads with something other than zeros.

        >>> ConvAdapter().windows(nn.Conv1d(4, 6, 3, stride=2, padding=1))
        (Window(taps=3, stride=2, dilation=1, before=1),)
        """
        sides = module._reversed_padding_repeated_twice
        if module.padding_mode != "zeros" and any(sides):
            return None
        # from the last axis to the first, and in front of each before behind it
        before = sides[::2][::-1]
        return tuple(map(Window, module.kernel_size, module.stride, module.dilation, before))

    def patches(self, module: KnownLayer, inputs: Tensor) -> Tensor:
        """[B, *out, G, S, *kernel], a view of the padded input."""
        axes = len(module.kernel_size)
        if inputs.dim() == axes + 1:
            inputs = inputs.unsqueeze(0)
        # torch keeps this tuple, ordered as F.pad wants it, for every padding mode and also for "same"
        padding = module._reversed_padding_repeated_twice
        if any(padding):
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            inputs = F.pad(inputs, padding, mode=mode)
        for axis, (size, step, gap) in enumerate(
            zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
        ):
            inputs = inputs.unfold(axis, (size - 1) * gap + 1, step)[..., ::gap]
        windows = inputs.unflatten(1, (module.groups, -1))
        positions = range(3, 3 + axes)
        return windows.permute(0, *positions, 1, 2, *range(3 + axes, 3 + 2 * axes))

    def outputs(self, module: KnownLayer, outputs: Tensor) -> Tensor:
        """[B, *out, G, T], a view."""
        if outputs.dim() == len(module.kernel_size) + 1:
            outputs = outputs.unsqueeze(0)
        return outputs.movedim(1, -1).unflatten(-1, (module.groups, -1))

    def positions(
        self, module: KnownLayer, stages: Sequence[StageShape], inputs: Tensor, outputs: Tensor
    ) -> tuple[int, ...]:
        """An axis shrinks to its output size at the stage that carries its taps."""
        axes = len(module.kernel_size)
        samples = inputs.shape[0] if inputs.dim() == axes + 2 else 1
        before, after = inputs.shape[-axes:], outputs.shape[-axes:]
        owners = _owners(module.kernel_size, [stage.kernel_size for stage in stages])
        return tuple(
            samples * math.prod(after[a] if index >= owners[a] else before[a] for a in range(axes))
            for index in range(len(stages))
        )

    def build(self, module: KnownLayer, factorization: Factorization, bias: Tensor | None) -> nn.Sequential:
        """A chain of convolutions of the same class; on each axis one of them takes stride, padding and dilation."""
        shapes = factorization.shapes
        owners = _owners(module.kernel_size, [shape.kernel_size for shape in shapes])
        convolution = CONVOLUTIONS[len(module.kernel_size)]
        chain = []
        for index, (stage, shape) in enumerate(zip(factorization.stages, shapes, strict=True)):
            mine = [owner == index for owner in owners]
            last = index == len(shapes) - 1
            conv = convolution(
                module.groups * shape.in_channels,
                module.groups * shape.out_channels,
                shape.kernel_size,
                stride=_choose(mine, module.stride, 1),
                padding=_padding(module.padding, mine),
                dilation=_choose(mine, module.dilation, 1),
                groups=module.groups * shape.groups,
                bias=last and bias is not None,
                # only where it pads: some modes refuse tensors that a stage without padding may well meet
                padding_mode=module.padding_mode if _pads(module, mine) else "zeros",
                device="meta",
            )
            chain.append(_assign(conv, stage.weight.flatten(0, 1), bias if last else None))
        return nn.Sequential(*chain)

    def to_dense(self, module: nn.Sequential) -> nn.Module:
        """One convolution with the multiplied-out kernel, behind the layer that pads where there is one."""
        if isinstance(module[0], tuple(PADS.values())):
            return nn.Sequential(module[0], self.to_dense(module[1:]))
        chain: list[KnownLayer] = list(module)
        axes = range(len(chain[0].kernel_size))
        groups = _outer_groups(chain)
        stages = [Stage(conv.weight.detach().unflatten(0, (groups, -1)), conv.groups // groups) for conv in chain]
        kernel = Factorization(tuple(stages)).to_kernel()
        last = chain[-1]
        padding = chain[0].padding
        if not isinstance(padding, str):
            padding = tuple(max(conv.padding[a] for conv in chain) for a in axes)
        modes = {conv.padding_mode for conv in chain} - {"zeros"}
        conv = type(last)(
            chain[0].in_channels,
            last.out_channels,
            tuple(kernel.shape[3:]),
            stride=tuple(max(conv.stride[a] for conv in chain) for a in axes),
            padding=padding,
            dilation=tuple(max(conv.dilation[a] for conv in chain) for a in axes),
            groups=groups,
            bias=last.bias is not None,
            padding_mode=modes.pop() if modes else "zeros",
            device="meta",
        )
        return _assign(conv, kernel.flatten(0, 1), last.bias).train(module.training)


class LinearAdapter:
    """Sees a linear layer as a kernel [1, T, S].

    >>> LinearAdapter().kernel(nn.Linear(3, 2)).shape
    torch.Size([1, 2, 3])
    """

    def refusal(self, module: KnownLayer) -> str | None:
        """Linear layers can always be factorised."""
        return None

    def kernel(self, module: KnownLayer) -> Tensor:
        """[1, T, S]."""
        return self.to_kernel(module, module.weight.detach())

    def to_kernel(self, module: KnownLayer, weight: Tensor) -> Tensor:
        """[T, S] to [1, T, S], a view."""
        return weight.unsqueeze(0)

    def to_weight(self, module: KnownLayer, kernel: Tensor) -> Tensor:
        """[1, T, S] to [T, S], a view."""
        return kernel.squeeze(0)

    def patches(self, module: KnownLayer, inputs: Tensor) -> Tensor:
        """[B, *rest, 1, S], a view."""
        return torch.atleast_2d(inputs).unsqueeze(-2)

    def outputs(self, module: KnownLayer, outputs: Tensor) -> Tensor:
        """[B, *rest, 1, T], a view."""
        return torch.atleast_2d(outputs).unsqueeze(-2)

    def positions(
        self, module: KnownLayer, stages: Sequence[StageShape], inputs: Tensor, outputs: Tensor
    ) -> tuple[int, ...]:
        """Every stage is applied to the same rows."""
        return (math.prod(outputs.shape[:-1]),) * len(stages)

    def build(self, module: KnownLayer, factorization: Factorization, bias: Tensor | None) -> nn.Sequential:
        """A chain of linear layers."""
        chain = []
        for index, stage in enumerate(factorization.stages):
            last = bias if index == len(factorization.stages) - 1 else None
            _, out, inputs = stage.weight.shape
            chain.append(_assign(nn.Linear(inputs, out, last is not None, device="meta"), stage.weight[0], last))
        return nn.Sequential(*chain)

    def to_dense(self, module: nn.Sequential) -> nn.Module:
        """One linear layer with the product of the weights."""
        chain: list[KnownLayer] = list(module)
        stages = tuple(Stage(linear.weight.detach().unsqueeze(0)) for linear in chain)
        weight = Factorization(stages).to_kernel()[0]
        bias = chain[-1].bias
        dense = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        return _assign(dense, weight, bias).train(module.training)


def _owners(kernel_size: Sequence[int], stages: Sequence[Sequence[int]]) -> list[int]:
    """For each axis the stage that takes its stride and padding: the first that has all of its taps."""
    return [
        next(index for index, stage in enumerate(stages) if stage[axis] == size)
        for axis, size in enumerate(kernel_size)
    ]


def _choose(mine: Sequence[bool], values: Sequence[int], other: int) -> tuple[int, ...]:
    return tuple(value if own else other for own, value in zip(mine, values, strict=True))


def _padding(padding: str | Sequence[int], mine: Sequence[bool]) -> str | tuple[int, ...]:
    # torch resolves a string axis by axis and gives an axis with one tap no padding, so every stage may take it
    return padding if isinstance(padding, str) else _choose(mine, padding, 0)


def _pads(module: KnownLayer, mine: Sequence[bool]) -> bool:
    sides = module._reversed_padding_repeated_twice
    return any(own and (sides[-2 * a - 2] or sides[-2 * a - 1]) for a, own in enumerate(mine))


def _outer_groups(chain: Sequence[KnownLayer]) -> int:
    """The groups of the layer that a chain came from: those that every stage's groups are a multiple of."""
    return list(accumulate((conv.groups for conv in chain), math.gcd))[-1]


def _assign(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    # contiguous, because the strides decide which of torch's kernels runs, and a restored chain must equal this one
    layer.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
