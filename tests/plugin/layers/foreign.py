# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A layer that nobody has an adapter for."""

from __future__ import annotations

import torch
from torch import nn


class Product(nn.Module):
    """A layer of no known kind."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(16, 16))

    def forward(self, x):
        return x @ self.matrix
