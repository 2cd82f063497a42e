# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""How a module type is seen as a kernel with geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from lowrank_hooks.factorization import Factorization, StageShape


@runtime_checkable
class LayerAdapter(Protocol):
    """Translates between a module type and the plain kernels that decomposers work on.

    B is the batch, *out the output positions, G the groups, T and S the output and input channels of one group.
    """

    def refusal(self, module: nn.Module) -> str | None:
        """Why this module cannot be factorised, as a phrase a user understands; None if it can."""
        ...

    def kernel(self, module: nn.Module) -> Tensor:
        """The weight as [G, T, S, *kernel], detached, in the module's dtype and on its device."""
        ...

    def patches(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """The input patches that meet the kernel: [B, *out, G, S, *kernel], a view where possible.

        For every b, position and group, the layer's output before its bias is the product of the flattened kernel
        with the flattened patch.
        """
        ...

    def outputs(self, module: nn.Module, outputs: Tensor) -> Tensor:
        """The layer's output (or its gradient) as [B, *out, G, T], a view where possible."""
        ...

    def positions(
        self, module: nn.Module, stages: Sequence[StageShape], inputs: Tensor, outputs: Tensor
    ) -> tuple[int, ...]:
        """How many output positions each stage of a chain computes for this input, over all of its samples."""
        ...

    def build(self, module: nn.Module, factorization: Factorization, bias: Tensor | None) -> nn.Sequential:
        """The chain as plain torch.nn modules with the module's stride, padding, dilation and padding mode.

        Weights take the factors; the last stage takes ``bias`` [G*T] if it is given.
        """
        ...

    def to_dense(self, module: nn.Sequential) -> nn.Module:
        """The single layer that computes what a chain made by ``build`` computes."""
        ...


@runtime_checkable
class WeightLayout(Protocol):
    """An adapter that knows where the entries of a kernel are in the module's ``weight``. Optional.

    It lets the flow write to layers and to the stages of chains that are of the adapter's module type: to match the
    moments of outputs, to distill, to rotate chains and to round weights for int8. Layers of others are left out there.
    For the module's own weight, ``to_kernel`` is what ``kernel`` is.

    >>> from torch import nn
    >>> class Embeds:
    ...     def to_kernel(self, module, weight):
    ...         return weight.mT.unsqueeze(0)
    ...     def to_weight(self, module, kernel):
    ...         return kernel.squeeze(0).mT
    >>> layer, layout = nn.Embedding(5, 3), Embeds()
    >>> doubled = layout.to_weight(layer, 2 * layout.to_kernel(layer, layer.weight.detach()))
    >>> isinstance(layout, WeightLayout), bool((doubled == 2 * layer.weight).all())
    (True, True)
    """

    def to_kernel(self, module: nn.Module, weight: Tensor) -> Tensor:
        """A tensor shaped like the module's weight, such as a gradient of it, as [G, T, S, *kernel]."""
        ...

    def to_weight(self, module: nn.Module, kernel: Tensor) -> Tensor:
        """The inverse: [G, T, S, *kernel] as a tensor shaped like the module's weight. Both may return views."""
        ...


@dataclass(frozen=True)
class Window:
    """What a zero-padded convolution reads along one spatial axis.

    At output position p, tap k meets the input at ``p * stride + k * dilation - before``; outside of the input it
    meets zero.

    :param taps: of the kernel.
    :param stride: distance of the windows of neighbouring outputs.
    :param dilation: distance of neighbouring taps.
    :param before: zeros in front of the input.
    """

    taps: int
    stride: int
    dilation: int
    before: int


@runtime_checkable
class Windowed(Protocol):
    """An adapter whose patches are windows of the input, so that few or none need be put together. Optional.

    Where the windows are known, patches are drawn without building the others, and the covariance of dense ones is had
    from correlations of whole maps. Without this protocol ``patches`` is all that is used.

    >>> class Reads3x1:
    ...     def windows(self, module):
    ...         return Window(taps=3, stride=1, dilation=1, before=1), Window(taps=1, stride=1, dilation=1, before=0)
    >>> isinstance(Reads3x1(), Windowed)
    True
    """

    def windows(self, module: nn.Module) -> tuple[Window, ...] | None:
        """The window on each spatial axis; None where this module's patches are not such windows.

        Where they are, inputs are [B, G*S, *size] and outputs [B, G*T, *out], channels by groups, and ``patches`` has
        at [b, p, g, s, k] what the windows say for channel ``g * S + s`` of sample b. Inputs with fewer axes, of one
        sample, are not looked at through the windows.
        """
        ...
