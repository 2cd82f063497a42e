# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Other tensors in the place of parameters and buffers, for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from torch import Tensor, nn


@contextmanager
def swapped(values: Mapping[tuple[nn.Module, str], Tensor]) -> Iterator[None]:
    """Have modules compute with other tensors in the place of their parameters and buffers.

    Slot by slot and not by name, as :func:`torch.func.functional_call` does it: that loses the parameters of modules
    which go by several names.

    >>> import torch
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> weight = layer.weight
    >>> with swapped({(layer, "weight"): torch.ones(1, 2)}):
    ...     layer(torch.ones(1, 2))
    tensor([[2.]])
    >>> layer.weight is weight
    True

    :param values: by module and name in it.
    """
    slots = {slot: _holder(*slot) for slot in values}
    own = {slot: where[slot[1]] for slot, where in slots.items()}
    try:
        for slot, where in slots.items():
            where[slot[1]] = values[slot]
        yield
    finally:
        for slot, where in slots.items():
            where[slot[1]] = own[slot]


def _holder(module: nn.Module, name: str) -> dict[str, Tensor | None]:
    """The dictionary of a module in which a parameter or buffer is."""
    return cast("dict[str, Tensor | None]", module._parameters if name in module._parameters else module._buffers)
