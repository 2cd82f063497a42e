# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""How a module type is seen as a kernel with geometry."""

from __future__ import annotations

from collections.abc import Sequence
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
