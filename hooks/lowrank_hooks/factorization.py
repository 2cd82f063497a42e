# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A factorised kernel as plain data: a chain of small convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor


@dataclass(frozen=True)
class StageShape:
    """The size of one convolution of a chain, for one group of the layer.

    >>> StageShape(out_channels=8, in_channels=8, kernel_size=(3, 3), groups=8).parameters
    72

    :param out_channels: channels that leave the stage.
    :param in_channels: channels that enter it.
    :param kernel_size: taps on each spatial axis; empty for a linear layer.
    :param groups: groups within the stage; equal to the channels for a depthwise stage.
    """

    out_channels: int
    in_channels: int
    kernel_size: tuple[int, ...] = ()
    groups: int = 1

    @property
    def parameters(self) -> int:
        """Number of weights, which is also the multiply-accumulates at each output position."""
        return self.out_channels * (self.in_channels // self.groups) * math.prod(self.kernel_size)


@dataclass(frozen=True)
class Stage:
    """One convolution of a chain, for all groups of the layer.

    A pointwise stage has a kernel of ones, a spatial stage larger taps on some axes, a depthwise stage as many groups
    as channels. On each spatial axis exactly one stage carries the taps of the layer; that stage also takes the
    layer's stride, padding and dilation on the axis, so a decomposer never deals with them.

    :param weight: [G, out, in // groups, *kernel], G the groups of the *layer*.
    :param groups: groups within the stage.
    """

    weight: Tensor
    groups: int = 1

    @property
    def shape(self) -> StageShape:
        """The sizes of this stage."""
        _, out, inputs, *kernel = self.weight.shape
        return StageShape(out, inputs * self.groups, tuple(kernel), self.groups)


@dataclass(frozen=True)
class Factorization:
    """A kernel as a chain of stages, first to last in the direction of the data.

    >>> first, last = torch.ones(1, 2, 3, 1, 1), torch.ones(1, 4, 2, 1, 1)
    >>> Factorization((Stage(first), Stage(last))).to_kernel().shape
    torch.Size([1, 4, 3, 1, 1])

    :param stages: the chain; no stage but the last may end in other channels than the next one takes.
    """

    stages: tuple[Stage, ...]

    @property
    def shapes(self) -> tuple[StageShape, ...]:
        """The sizes of the stages."""
        return tuple(stage.shape for stage in self.stages)

    @property
    def parameters(self) -> int:
        """Number of weights over all groups of the layer."""
        return sum(stage.weight.numel() for stage in self.stages)

    def to_kernel(self) -> Tensor:
        """Multiply the chain out.

        :return: the dense kernel [G, T, S, *kernel], in the dtype and on the device of the stages; no view of them.
        """
        first, *others = self.stages
        kernel = first.weight if first.groups == 1 else _as_kernel(first)
        return reduce(_append, others, kernel) if others else kernel.clone()

    def map(self, function: Callable[[Tensor], Tensor]) -> Factorization:
        """Return the chain with ``function`` applied to every weight (a cast, a move to a device).

        :param function: takes and returns a tensor of the same shape.
        """
        return Factorization(tuple(Stage(function(stage.weight), stage.groups) for stage in self.stages))


def _as_kernel(stage: Stage) -> Tensor:
    """The kernel of a stage with groups, zeros between them included."""
    identity = torch.eye(stage.shape.in_channels, dtype=stage.weight.dtype, device=stage.weight.device)
    identity = identity.reshape(1, *identity.shape, *(1 for _ in stage.shape.kernel_size))
    return _append(identity.expand(stage.weight.shape[0], *identity.shape[1:]), stage)


def _append(kernel: Tensor, stage: Stage) -> Tensor:
    """Compose ``kernel`` [G, C, S, *a] with a stage that takes its C channels; on each axis one extent must be 1."""
    blocks = kernel.unflatten(1, (stage.groups, -1))
    weight = stage.weight.unflatten(1, (stage.groups, -1))
    # contiguous here: the next product would copy, and keep, what is a view of another order
    return torch.einsum("gmoc...,gmcs...->gmos...", weight, blocks).contiguous().flatten(1, 2)
