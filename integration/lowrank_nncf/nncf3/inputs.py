# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""An example input made from the config's 'input_info'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_nncf.errors import ConfigurationError


def example_input(input_info: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None, model: nn.Module) -> Any:
    """Make an example input.

    >>> example_input({"sample_size": [1, 3, 8, 8]}, nn.Conv2d(3, 4, 3)).shape
    torch.Size([1, 3, 8, 8])

    :param input_info: the validated value of the config's key; None or an empty list if there is none.
    :param model: the input is made on the device of its first parameter.
    :return: a tensor for one input, a tuple for several, a dictionary where they have keywords, None without any.
    """
    if not input_info:
        return None
    entries = [input_info] if isinstance(input_info, Mapping) else list(input_info)
    parameter = next(model.parameters(), None)
    tensors = [_tensor(entry, parameter.device if parameter is not None else torch.device("cpu")) for entry in entries]
    keywords = [entry.get("keyword") for entry in entries]
    if all(keywords):
        return dict(zip(keywords, tensors, strict=True))
    if any(keywords):
        msg = (
            f"The inputs in config['input_info'] have the keywords {keywords}: expected a keyword for every input or "
            "for none. Give the remaining inputs the names of their arguments of forward."
        )
        raise ConfigurationError(msg)
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _tensor(entry: Mapping[str, Any], device: torch.device) -> Tensor:
    shape, dtype = entry["sample_size"], {"float": torch.float32, "long": torch.long}[entry.get("type", "float")]
    filler = entry.get("filler", "ones")
    if filler == "random":
        generator = torch.Generator().manual_seed(0)
        return torch.rand(shape, generator=generator).to(device, dtype)
    return torch.full(shape, 1 if filler == "ones" else 0, dtype=dtype, device=device)
