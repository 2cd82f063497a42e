# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Ways in which people write networks, each as small as it can be: what holds for one should hold for all."""

from plugin.idioms import layers, running, structure  # noqa: F401 - each enters its idioms
from plugin.idioms.base import IDIOMS, PAST, SAMPLES, Idiom

__all__ = ["IDIOMS", "PAST", "SAMPLES", "Idiom"]
