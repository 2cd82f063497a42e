# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""From data to what is known of each layer: moments, gradients, norms and weights."""

from lowrank_plugin.statistics.snapshot import Statistics

__all__ = ["Statistics"]
