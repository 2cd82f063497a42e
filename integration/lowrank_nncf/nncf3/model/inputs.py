# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What a model is run on: an example input, made from the config's 'input_info', and how much of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import nncf
import torch
from torch import Tensor, nn

from lowrank_hooks import CompressionContext
from lowrank_nncf.errors import CalibrationError, ConfigurationError
from lowrank_nncf.nncf3.sections import InputInfo

Example: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""One input, several by position, or several by the names of their arguments."""


def example_input(input_info: InputInfo | Sequence[InputInfo] | None, model: nn.Module) -> Example | None:
    """Make an example input.

    >>> example_input({"sample_size": [1, 3, 8, 8]}, nn.Conv2d(3, 4, 3)).shape
    torch.Size([1, 3, 8, 8])

    :param input_info: the validated value of the config's key; None or an empty list if there is none.
    :param model: the input is made on the device of its first parameter.
    :return: a tensor for one input, a tuple for several, a dictionary where they have keywords, None without any.
    """
    if not input_info:
        return None
    entries = list(input_info) if isinstance(input_info, Sequence) else [input_info]
    parameter = next(model.parameters(), None)
    tensors = [_tensor(entry, parameter.device if parameter is not None else torch.device("cpu")) for entry in entries]
    keywords = [entry.get("keyword") for entry in entries]
    named = {keyword: tensor for keyword, tensor in zip(keywords, tensors, strict=True) if keyword}
    if len(named) == len(tensors):
        return named
    if named:
        msg = (
            f"The inputs in config['input_info'] have the keywords {keywords}: expected a keyword for every input or "
            "for none. Give the remaining inputs the names of their arguments of forward."
        )
        raise ConfigurationError(msg)
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def example_of(context: CompressionContext) -> object:
    """Return the example input of a config, or else the first of its data.

    :param context: what the config says for all sections.
    :raises ConfigurationError: where there is neither.
    :raises CalibrationError: where the data are empty.
    """
    if context.example_input is not None:
        return context.example_input
    if context.dataset is None:
        msg = (
            "No example input to run the model with. Give 'input_info' in the config, or pass "
            "dataset=nncf.Dataset(loader, transform)."
        )
        raise ConfigurationError(msg)
    try:
        return next(iter(context.dataset.get_inference_data()))
    except StopIteration as error:
        msg = "The dataset is empty. A generator can be gone through only once; give a list or a DataLoader instead."
        raise CalibrationError(msg) from error


def items_for(samples: int, dataset: nncf.Dataset) -> int:
    """How many items of a data set hold as many samples; at most all of them.

    >>> items_for(20, nncf.Dataset([0, 1, 2]))
    3

    :param samples: the number wanted.
    :param dataset: the data; an item is a sample unless the data source has a ``batch_size``.
    """
    items = math.ceil(samples / (dataset.get_batch_size() or 1))
    length = dataset.get_length()
    return items if length is None else min(items, length)


def _tensor(entry: InputInfo, device: torch.device) -> Tensor:
    shape, dtype = entry["sample_size"], {"float": torch.float32, "long": torch.long}[entry.get("type", "float")]
    filler = entry.get("filler", "ones")
    if filler == "random":
        generator = torch.Generator().manual_seed(0)
        return torch.rand(shape, generator=generator).to(device, dtype)
    return torch.full(shape, 1 if filler == "ones" else 0, dtype=dtype, device=device)
