# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The built-in layer adapters run the conformance kit that third parties run, and broken ones fail it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from lowrank_hooks.testing import LayerAdapterConformance
from lowrank_plugin.layers.adapters import ConvAdapter, LinearAdapter


class TestConvolutions(LayerAdapterConformance):
    adapter = ConvAdapter()
    layers = (
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), torch.randn(2, 4, 9)),
        (nn.Conv2d(4, 6, 3, padding="same", groups=2, bias=False), torch.randn(2, 4, 7, 6)),
        (nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), padding_mode="circular"), torch.randn(2, 4, 8, 7)),
        (nn.Conv3d(4, 6, (2, 3, 1), dilation=(1, 2, 1)), torch.randn(2, 4, 4, 6, 5)),
    )


class TestLinear(LayerAdapterConformance):
    adapter = LinearAdapter()
    layers = (
        (nn.Linear(5, 4), torch.randn(3, 5)),
        (nn.Linear(5, 6, bias=False), torch.randn(2, 3, 5)),
    )


class Refuses(ConvAdapter):
    def refusal(self, module):
        return "never"


class Attached(ConvAdapter):
    def kernel(self, module):
        return module.weight.unflatten(0, (module.groups, -1))


class MirroredPatches(ConvAdapter):
    def patches(self, module, inputs):
        return super().patches(module, inputs).flip(-1)


class ForgetsTheBias(ConvAdapter):
    def build(self, module, factorization, bias):
        return super().build(module, factorization, None)


class ForgetsTheStride(ConvAdapter):
    def to_dense(self, module):
        dense = super().to_dense(module)
        dense.stride = (1, 1)
        return dense


class CountsTheInput(ConvAdapter):
    def positions(self, module, stages, inputs, outputs):
        return super().positions(module, stages, inputs, inputs)


class ForgetsTheGroups(ConvAdapter):
    def to_weight(self, module, kernel):
        return kernel.transpose(0, 1).flatten(0, 1)


class ForgetsThePadding(ConvAdapter):
    def windows(self, module):
        return tuple(replace(window, before=0) for window in super().windows(module))


FAULTS = {
    "test_it_is_a_layer_adapter": object,
    "test_layer_is_taken_and_left_alone": Refuses,
    "test_kernel": Attached,
    "test_kernel_times_patches_is_the_output": MirroredPatches,
    "test_chain_computes_the_same": ForgetsTheBias,
    "test_chain_is_multiplied_out": ForgetsTheStride,
    "test_positions_count_what_is_computed": CountsTheInput,
    "test_weight_layout": ForgetsTheGroups,
    "test_windows_are_the_patches": ForgetsThePadding,
}


@pytest.mark.parametrize("check", [name for name in vars(LayerAdapterConformance) if name.startswith("test_")])
def test_fault_is_seen(check):
    layer = (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2).double(), torch.randn(2, 4, 9, 9, dtype=torch.float64))
    for adapter, fails in ((ConvAdapter(), False), (FAULTS[check](), True)):
        kit = type("TestIt", (LayerAdapterConformance,), {"adapter": adapter, "layers": [layer]})()
        arguments = [] if check == "test_it_is_a_layer_adapter" else [copy.deepcopy(layer)]
        try:
            getattr(kit, check)(*arguments)
        except AssertionError:
            assert fails
        else:
            assert not fails
