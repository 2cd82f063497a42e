# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Scales and shifts are absorbed into layers, wherever these have their output channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowrank_plugin.layers.adapters import ConvAdapter, LinearAdapter
from lowrank_plugin.repair.moments import absorb


class Transposed:
    """Torch keeps the outputs of a transposed convolution on the second axis, those of each group alone."""

    def to_kernel(self, module, weight):
        return weight.unflatten(0, (module.groups, -1)).transpose(1, 2)

    def to_weight(self, module, kernel):
        return kernel.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize(
    ("last", "layout"),
    [
        (nn.ConvTranspose2d(4, 6, 3, groups=2), Transposed()),
        (nn.ConvTranspose2d(4, 6, 3, bias=False), Transposed()),
        (nn.Conv2d(4, 6, 3, groups=2), ConvAdapter()),
        (nn.Conv2d(4, 6, 3, bias=False), ConvAdapter()),
        (nn.Linear(5, 6), LinearAdapter()),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else type(value).__name__,
)
def test_a_scale_and_a_shift_go_into_weight_and_bias(last, layout):
    last = last.double()
    x, scale, shift = (torch.rand(*size, dtype=torch.float64) for size in ((2, 4, 5, 5), (6,), (6,)))
    size = (6,) if isinstance(last, nn.Linear) else (6, 1, 1)
    with torch.no_grad():
        wanted = last(x) * scale.reshape(size) + shift.reshape(size)
        absorb(last, layout, scale, shift)
        torch.testing.assert_close(last(x), wanted)
