# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What all processes saw, put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lowrank_plugin.statistics.autocorrelation import Autocorrelation
from lowrank_plugin.statistics.collection import Observed
from lowrank_plugin.statistics.moments import Moments
from lowrank_plugin.statistics.vectors import Inputs, Vectors
from lowrank_plugin.support.processes import gathered, processes, summed


def combined(observed: Mapping[str, Observed], device: torch.device) -> dict[str, Observed]:
    """What all processes saw.

    :param observed: what this process saw, by layer name; its own batches only.
    :param device: of the model, where the sums are wanted.
    :return: the same in every process, with outputs in the order of the batches.
    """
    if processes() == 1:
        return dict(observed)
    mine = {name: list(zip(each.batch_numbers, each.outputs, strict=True)) for name, each in observed.items()}
    outputs = gathered(mine)
    found = {}
    for name in dict.fromkeys(name for part in outputs for name in part):
        numbered = sorted((pair for part in outputs for pair in part.get(name, ())), key=lambda pair: pair[0])
        numbers, values = zip(*numbered, strict=True)
        patches = _sum(observed[name].patches if name in observed else Moments(), device)
        found[name] = Observed(patches, [each.to(device) for each in values], list(numbers))
    return found


def _sum(patches: Inputs | Autocorrelation, device: torch.device) -> Inputs | Autocorrelation:
    """One layer's sums over all processes; some may have seen nothing of it."""
    kept = gathered(patches.rows if isinstance(patches, Vectors) and patches.count else None)
    if rows := [part.to(device) for part in kept if part is not None]:
        return Vectors(torch.cat(rows))
    if isinstance(patches, Vectors):  # an empty one
        patches = Moments()
    geometries = {kind for count, kind in gathered((patches.count, getattr(patches, "geometry", None))) if count}
    if not geometries:
        return patches
    geometry = geometries.pop()
    if geometries or geometry is None:
        # maps of different sizes have only the moments of their patches in common
        patches, geometry = patches.moments(), None
    number = patches.samples if isinstance(patches, Autocorrelation) else patches.count
    number, shifts = sum(gathered(number)), gathered(patches.shift if number else None)
    shift = next(each for each in shifts if each is not None).to(device)
    parts: dict[str, Any] = {}
    if patches.count:
        mine = patches.about(shift)
        parts = {"sums": mine.sums, "products": mine.products}
    parts = summed(parts, device)
    return Moments(number, shift, **parts) if geometry is None else Autocorrelation(geometry, number, shift, **parts)
