# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The built-in layer adapters, under the name by which plugins import them."""

from lowrank_plugin.layers.adapters import CONVOLUTIONS, ConvAdapter, LinearAdapter

__all__ = ["CONVOLUTIONS", "ConvAdapter", "LinearAdapter"]
