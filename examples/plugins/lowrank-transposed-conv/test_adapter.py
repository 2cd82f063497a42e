# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The conformance kit, run on the adapter."""

import torch
from lowrank_transposed_conv import TransposedConvAdapter
from torch import nn

from lowrank_hooks.testing import LayerAdapterConformance


class TestTransposedConv(LayerAdapterConformance):
    """Strides, padding, dilation, groups."""

    adapter = TransposedConvAdapter()
    layers = (
        (nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), torch.randn(2, 4, 5, 6)),
        (nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (0, 1), (1, 2), 2, False, (1, 2)), torch.randn(2, 4, 5, 6)),
        (nn.ConvTranspose2d(4, 6, 3, dilation=2, padding=2), torch.randn(2, 4, 5, 6)),
    )
