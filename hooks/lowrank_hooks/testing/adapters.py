# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The checks of layer adapters."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_hooks import Factorization, LayerAdapter, Stage, WeightLayout, Window, Windowed

TOLERANCE = 1e-9
"""Outputs are compared in float64."""


class LayerAdapterConformance:
    """What the flow relies on in every layer adapter; subclass it under a name that starts with ``Test``.

    :param adapter: the implementation.
    :param layers: modules with an input each, as different as the module type allows: strides, groups, no bias.
    """

    adapter: LayerAdapter
    layers: ClassVar[Sequence[tuple[nn.Module, Tensor]]]

    @classmethod
    def pytest_generate_tests(cls, metafunc: Any) -> None:
        """Run each check that takes a ``layer`` on all of them, in float64."""
        if "layer" in metafunc.fixturenames:
            both = [(copy.deepcopy(module).double().eval(), inputs.double()) for module, inputs in cls.layers]
            metafunc.parametrize("layer", both, ids=[str(module) for module, _ in both])

    def test_it_is_a_layer_adapter(self) -> None:
        """It has all methods, and something to be tried on."""
        assert isinstance(self.adapter, LayerAdapter), "A layer adapter has all methods of lowrank_hooks.LayerAdapter."
        assert self.layers, "Give at least one layer with an input."

    def test_layer_is_taken_and_left_alone(self, layer: tuple[nn.Module, Tensor]) -> None:
        """It is not refused, and nothing of it or of its input changes."""
        module, inputs = layer
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        given = inputs.clone()
        assert self.adapter.refusal(module) is None, self.adapter.refusal(module)
        self.adapter.to_dense(self.chain(module))
        self.adapter.patches(module, inputs)
        assert torch.equal(inputs, given), "The input was modified."
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, before[name]), f"{name!r} of the module was modified."

    def test_kernel(self, layer: tuple[nn.Module, Tensor]) -> None:
        """Detached, in the layer's dtype, with all of its weights."""
        module, _ = layer
        kernel, weight = self.adapter.kernel(module), weight_of(module)
        assert not kernel.requires_grad, "The kernel must be detached."
        assert kernel.dtype == weight.dtype, "The kernel must keep the dtype."
        assert kernel.numel() == weight.numel(), f"The kernel is {tuple(kernel.shape)} for {tuple(weight.shape)}."

    def test_kernel_times_patches_is_the_output(self, layer: tuple[nn.Module, Tensor]) -> None:
        """The statistics of the patches are those that the errors are measured in."""
        module, inputs = layer
        kernel = self.adapter.kernel(module).flatten(2)
        with torch.no_grad():
            wanted = self.adapter.outputs(module, module(inputs))
        found = torch.einsum(
            "...gn,gtn->...gt", self.adapter.patches(module, inputs).flatten(-kernel_axes(self, module)), kernel
        )
        if bias_of(module) is not None:
            found = found + bias_of(module).reshape(wanted.shape[-2:])  # type: ignore[union-attr]
        torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=TOLERANCE)

    def test_chain_computes_the_same(self, layer: tuple[nn.Module, Tensor]) -> None:
        """At full rank, for a chain with the taps in its first, a middle and its last stage."""
        module, inputs = layer
        for place in range(3):
            chain = self.chain(module, place)
            assert all(type(each).__module__.startswith("torch.nn") for each in chain), "A chain is plain torch.nn."
            with torch.no_grad():
                torch.testing.assert_close(chain(inputs), module(inputs), atol=TOLERANCE, rtol=TOLERANCE)

    def test_chain_is_multiplied_out(self, layer: tuple[nn.Module, Tensor]) -> None:
        """``to_dense`` gives back the layer."""
        module, inputs = layer
        for place in range(3):
            dense = self.adapter.to_dense(self.chain(module, place))
            assert type(dense) is type(module), f"to_dense gives a {type(dense).__name__}."
            with torch.no_grad():
                torch.testing.assert_close(dense(inputs), module(inputs), atol=TOLERANCE, rtol=TOLERANCE)

    def test_positions_count_what_is_computed(self, layer: tuple[nn.Module, Tensor]) -> None:
        """Weights times positions are the multiply-accumulates that torch counts."""
        module, inputs = layer
        outputs = module(inputs)
        for place in range(3):
            chain = self.chain(module, place)
            shapes = self.factorization(module, place).shapes
            positions = self.adapter.positions(module, shapes, inputs, outputs)
            groups = self.adapter.kernel(module).shape[0]
            told = groups * sum(shape.parameters * count for shape, count in zip(shapes, positions, strict=True))
            with FlopCounterMode(display=False) as counter:
                chain(inputs)
            assert 2 * told == counter.get_total_flops(), (
                f"{told} by positions, {counter.get_total_flops() // 2} by torch."
            )

    def test_weight_layout(self, layer: tuple[nn.Module, Tensor]) -> None:
        """The two ways undo each other, and lead to what ``kernel`` says; optional."""
        if not isinstance(self.adapter, WeightLayout):
            pytest.skip("not offered: the flow does not write to such layers")
        module, _ = layer
        weight = weight_of(module).detach()
        numbered = torch.arange(weight.numel(), dtype=weight.dtype).reshape(weight.shape)
        kernel = self.adapter.to_kernel(module, weight)
        assert torch.equal(kernel, self.adapter.kernel(module)), "to_kernel of the weight is not the kernel."
        back = self.adapter.to_weight(module, self.adapter.to_kernel(module, numbered))
        assert torch.equal(back, numbered), "to_weight does not undo to_kernel."

    def test_windows_are_the_patches(self, layer: tuple[nn.Module, Tensor]) -> None:
        """What the windows say of each entry is what ``patches`` has there; optional."""
        module, inputs = layer
        windows = self.adapter.windows(module) if isinstance(self.adapter, Windowed) else None
        if windows is None:
            pytest.skip("not offered: only patches are used")
        patches, kernel = self.adapter.patches(module, inputs), self.adapter.kernel(module)
        axes = len(windows)
        assert tuple(window.taps for window in windows) == kernel.shape[3:], "A window has other taps than the kernel."
        torch.testing.assert_close(gathered(windows, inputs, patches.shape[1 : 1 + axes], len(kernel)), patches)

    def chain(self, module: nn.Module, place: int = 0) -> nn.Sequential:
        """The layer as a chain."""
        bias = bias_of(module)
        return self.adapter.build(module, self.factorization(module, place), None if bias is None else bias.detach())

    def factorization(self, module: nn.Module, place: int) -> Factorization:
        """The kernel itself among stages that mix channels and undo it; ``place`` is its place in the chain."""
        kernel = self.adapter.kernel(module)
        groups, out, inputs, *taps = kernel.shape
        generator = torch.Generator().manual_seed(0)
        stages = []
        for size, count in ((inputs, place), (out, 2 - place)):
            mixing = [
                torch.linalg.qr(torch.randn(groups, size, size, generator=generator).to(kernel)).Q for _ in range(count)
            ]
            stages.append([Stage(each.reshape(*each.shape, *(1 for _ in taps))) for each in mixing])
        before, after = (Factorization(tuple(each)).to_kernel().flatten(2) if each else None for each in stages)
        middle = kernel.flatten(3) if taps else kernel.unsqueeze(-1)
        if before is not None:
            middle = torch.einsum("gtsk,grs->gtrk", middle, before)
        if after is not None:
            middle = torch.einsum("gtsk,gtr->grsk", middle, after)
        return Factorization((*stages[0], Stage(middle.reshape(kernel.shape)), *stages[1]))


def gathered(windows: Sequence[Window], inputs: Tensor, sizes: Sequence[int], groups: int) -> Tensor:
    """The patches [B, *out, G, S, *kernel] that windows of inputs [B, G*S, *size] are, entry by entry."""
    taps = [window.taps for window in windows]
    patches = inputs.new_zeros(len(inputs), *sizes, groups, inputs.shape[1] // groups, *taps)
    for places in itertools.product(*map(range, sizes), *map(range, taps)):
        position, tap = places[: len(windows)], places[len(windows) :]
        source = [
            p * window.stride + k * window.dilation - window.before
            for p, k, window in zip(position, tap, windows, strict=True)
        ]
        if all(0 <= at < size for at, size in zip(source, inputs.shape[2:], strict=True)):
            here: tuple[Any, ...] = (slice(None), *position, ..., *tap)
            there: tuple[Any, ...] = (..., *source)
            patches[here] = inputs[there].unflatten(1, (groups, -1))
    return patches


def kernel_axes(conformance: LayerAdapterConformance, module: nn.Module) -> int:
    """How many axes of a patch meet the kernel."""
    return conformance.adapter.kernel(module).dim() - 2


def weight_of(module: Any) -> Tensor:
    """The weight."""
    weight: Tensor = module.weight
    return weight


def bias_of(module: Any) -> Tensor | None:
    """The bias, detached; None if there is none."""
    return None if module.bias is None else module.bias.detach()
