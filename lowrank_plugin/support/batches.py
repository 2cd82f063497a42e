# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Calibration data: whatever users have, as model inputs; and calling a model with them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lowrank_plugin.errors import CalibrationError


def take_batches(model: nn.Module, data: Any, samples: int) -> list[object]:
    """Read batches until there are enough samples; the last one is cut to size.

    :param model: the network, to tell inputs from labels.
    :param data: an ``nncf.Dataset`` (its transform gives the inputs), a DataLoader or any iterable of batches. A
        tuple or list becomes positional arguments as far as the model takes them, otherwise its first element is the
        input; a dict becomes keyword arguments.
    :param samples: how many samples are wanted.
    :return: the batches, where the data left them (usually on the CPU).
    :raises CalibrationError: where there is no data or a batch holds no tensor.
    """
    inference = getattr(data, "get_inference_data", None)
    batches, count = [], 0
    for item in inference() if inference is not None else iter(data):
        batch = item if inference is not None else _inputs(model, item)
        size = batch_size(batch)
        if size > samples - count:
            batch = _slice(batch, 0, samples - count)
            size = samples - count
        batches.append(batch)
        count += size
        if count >= samples:
            break
    if not batches:
        msg = "The calibration data is empty: it must yield at least one batch of model inputs."
        raise CalibrationError(msg)
    return batches


def enough(batches: Sequence[object], samples: float) -> list[object]:
    """The first batches that hold so many samples together, or all where there are fewer."""
    chosen: list[object] = []
    for batch in batches:
        if sum(batch_size(each) for each in chosen) >= samples:
            break
        chosen.append(batch)
    return chosen


def split(batches: Sequence[object], share: float, most: int) -> tuple[list[object], list[object]]:
    """Cut batches into smaller ones, and put some of these aside.

    >>> [[len(each) for each in part] for part in split([torch.zeros(20, 3), torch.zeros(20, 3)], share=1 / 4, most=10)]
    [[10, 10, 10], [10]]

    :param batches: model inputs.
    :param share: of the samples that is put aside, at least one of them.
    :param most: samples in each of the smaller batches.
    :return: the batches that are left, and those put aside.
    :raises CalibrationError: where there are fewer than two samples.
    """
    total = sum(batch_size(batch) for batch in batches)
    if total < 2:
        msg = f"Got {total} calibration sample, but at least 2 are needed: some are learned from and some held out."
        raise CalibrationError(msg)
    most = min(most, max(1, int(share * total)))
    pieces = [_slice(batch, start, start + most) for batch in batches for start in range(0, batch_size(batch), most)]
    # spread evenly, because data is often sorted
    aside = set(range(0, len(pieces), max(2, round(1 / share))))
    return (
        [piece for index, piece in enumerate(pieces) if index not in aside],
        [piece for index, piece in enumerate(pieces) if index in aside],
    )


def _slice(batch: object, start: int, stop: int) -> object:
    size = batch_size(batch)
    return pytree.tree_map(
        lambda leaf: leaf[start:stop] if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size else leaf,
        batch,
    )


def batch_size(batch: object) -> int:
    """The first dimension of the first tensor of a batch.

    :raises CalibrationError: where it holds no tensor.
    """
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor):
            return leaf.shape[0] if leaf.dim() else 1
    msg = f"Expected a batch to hold at least one torch.Tensor, but it is {type(batch).__name__}: {batch!r:.80}."
    raise CalibrationError(msg)


def one_sample(batch: object) -> object:
    """The first sample of a batch, with a batch dimension of 1.

    >>> one_sample({"x": torch.zeros(8, 3)})["x"].shape
    torch.Size([1, 3])

    :param batch: any nesting of tuples, lists and dicts.
    """
    return _slice(batch, 0, 1)


def call(model: nn.Module, batch: object) -> Any:
    """Run a model on a batch, as NNCF does: a tuple or list is spread out, a dict becomes keyword arguments.

    :param model: any module; its first parameter tells the device.
    :param batch: any nesting of tuples, lists and dicts; its tensors are moved to the model's device.
    :raises CalibrationError: where the model cannot take it, with the model's own error as the cause.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    batch = pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)
    try:
        if isinstance(batch, Mapping):
            return model(**batch)
        if isinstance(batch, tuple | list):
            return model(*batch)
        return model(batch)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
        shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
        msg = (
            f"The model cannot take a calibration batch with tensors of shapes {shapes}: {type(error).__name__}: "
            f"{error}. Give batches (or a transform of the nncf.Dataset) that can be passed to the model."
        )
        raise CalibrationError(msg) from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode and without gradients, and back as it was.

    :param model: the network; modules keep their own train flags afterwards.
    """
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in flags.items():
            module.training = training


def _inputs(model: nn.Module, item: object) -> object:
    if isinstance(item, tuple | list):
        try:
            inspect.signature(model.forward).bind(*item)
        except TypeError:
            return item[0]
    return item
