# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The built-in layer adapters, under the name that plugins import them by; see :mod:`lowrank_plugin.layers.adapters`."""

from lowrank_plugin.layers.adapters import CONVOLUTIONS, ConvAdapter, LinearAdapter

__all__ = ["CONVOLUTIONS", "ConvAdapter", "LinearAdapter"]
