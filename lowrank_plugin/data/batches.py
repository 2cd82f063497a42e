# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Calibration data: whatever users have, as model inputs; and calling a model with them.

**What data are.** A DataLoader, any other iterable of batches, or an ``nncf.Dataset``. A tensor or a mapping by itself
is one batch. A map-style ``torch.utils.data.Dataset`` holds samples, not batches, and is refused.

**What becomes of an item** (:mod:`lowrank_plugin.data.inputs`), where ``forward(a, b, c=None)`` is the model's:

=================================  ==================================================================================
``(a, b, labels)``, a list too     ``forward(a, b)``: required parameters only, so that no label lands in an optional
                                   one; the first entry where none is required, all where forward takes ``*args``
``((a, b), labels)``               ``forward(a, b)``
``({"a": a, "b": b}, labels)``     ``forward(a=a, b=b)``
a mapping or a dataclass           by name, optional parameters too; other entries are left out with a warning. As one
                                   argument where no entry is a parameter
a list of images or of mappings    one argument, where one is required and the model runs on it
anything else                      one argument
=================================  ==================================================================================

>>> class Model(nn.Module):
...     def forward(self, a, b, c=None):
...         return [None if each is None else tuple(each.shape) for each in (a, b, c)]
>>> a, b, labels = torch.zeros(8, 3), torch.zeros(8, 4), torch.zeros(8)
>>> for item in [a, b, labels], ((a, b), labels), ({"a": a, "b": b}, labels), {"a": a, "b": b, "c": labels}:
...     [batch] = take_batches(Model(), [item], samples=8)
...     print(call(Model(), batch))
[(8, 3), (8, 4), None]
[(8, 3), (8, 4), None]
[(8, 3), (8, 4), None]
[(8, 3), (8, 4), (8,)]

Wrappers that pass everything on, such as ``DataParallel`` and ``torch.compile``, take what the model inside takes. An
``nncf.Dataset`` says with its transform what the input is, which is used as NNCF does: a tuple is spread, a dict names
the arguments, anything else, a list too, is one argument. An ``example_input`` likewise, but a list is spread.

**What a model gets** (:func:`call`) is a copy each time, so that the user's data stay as they are. How many samples a
batch holds, and where it may be cut, is told in :mod:`lowrank_plugin.data.samples`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from lowrank_plugin.data.inputs import Forward, Reader
from lowrank_plugin.data.samples import Samples, cut, fresh, is_movable, leaves, shapes
from lowrank_plugin.errors import CalibrationError, LowRankError
from lowrank_plugin.support.keeping import kept, undisturbed


def take_batches(model: nn.Module, data: Any, samples: int) -> list[object]:
    """Read batches until there are enough samples; the last one is cut to size where it can be.

    >>> taken = take_batches(nn.Linear(4, 2), [(torch.zeros(8, 4), torch.zeros(8)) for _ in range(3)], samples=12)
    >>> [tuple(batch.shape) for batch in taken]
    [(8, 4), (4, 4)]

    :param model: the network, to tell inputs from labels.
    :param data: an ``nncf.Dataset``, a DataLoader or any iterable of batches; see above.
    :param samples: how many samples are wanted.
    :return: the batches, where the data left them (usually on the CPU): what :func:`call` takes.
    :raises CalibrationError: where there is no data, or a batch holds no tensor or no sample.
    """
    inference, reader = getattr(data, "get_inference_data", None), _reader(model)
    read = reader.item if inference is None else reader.given
    batches: list[object] = []
    count = 0
    for item in _items(data) if inference is None else inference():
        batch = read(item)
        size = _checked(batch, item, len(batches))
        if size > samples - count:
            batch = cut(batch, 0, samples - count)
        batches.append(batch)
        count += size
        if count >= samples:
            break
    if not batches:
        msg = "The calibration data is empty: it must yield at least one batch of model inputs."
        raise CalibrationError(msg)
    return batches


def take_example(model: nn.Module, example: object) -> object:
    """What to call a model with for an example input that a user gave.

    :param model: the network.
    :param example: a tensor; a tuple or list of positional arguments; a mapping or dataclass of keyword arguments.
    :return: what :func:`call` takes.
    :raises CalibrationError: where it holds no tensor or no sample.
    """
    batch = _reader(model).example(example)
    _checked(batch, example, None)
    return batch


def enough(batches: Sequence[object], samples: float) -> list[object]:
    """The first batches that hold so many samples together, or all where there are fewer.

    >>> len(enough([torch.zeros(8, 3)] * 4, samples=10))
    2

    :param batches: model inputs.
    :param samples: the number wanted.
    """
    chosen: list[object] = []
    count = 0
    for batch in batches:
        if count >= samples:
            break
        chosen.append(batch)
        count += batch_size(batch)
    return chosen


def split(batches: Sequence[object], share: float, most: int) -> tuple[list[object], list[object]]:
    """Cut batches into smaller ones, and put some of these aside.

    >>> [[len(each) for each in part] for part in split([torch.zeros(20, 3), torch.zeros(20, 3)], share=1 / 4, most=10)]
    [[10, 10, 10], [10]]

    :param batches: model inputs.
    :param share: of the samples that is put aside, at least one of them.
    :param most: samples in each of the smaller batches, but for those that must stay whole.
    :return: the batches that are left, and those put aside.
    :raises CalibrationError: where there are fewer than two samples, or they cannot be told apart.
    """
    total = sum(batch_size(batch) for batch in batches)
    most = min(most, max(1, int(share * total)))
    pieces = [piece for batch in batches for piece in _pieces(batch, most)]
    if len(pieces) < 2:
        what = f"{total} calibration sample" if total < 2 else "one calibration batch that cannot be cut"
        msg = f"Got {what}, but at least 2 are needed: some are learned from and some held out."
        raise CalibrationError(msg)
    # spread evenly, because data is often sorted
    aside = set(range(0, len(pieces), max(2, round(1 / share))))
    return (
        [piece for index, piece in enumerate(pieces) if index not in aside],
        [piece for index, piece in enumerate(pieces) if index in aside],
    )


def batch_size(batch: object) -> int:
    """How many samples a batch holds.

    >>> batch_size({"images": [torch.zeros(3, 16, 20), torch.zeros(3, 24, 16)]})
    2

    :param batch: a model input.
    :raises CalibrationError: where it holds no tensor.
    """
    return _counted(batch, batch).count


def one_sample(batch: object) -> object:
    """The first sample of a batch, with a batch dimension of 1; all of a batch that must stay whole.

    >>> one_sample({"x": torch.zeros(8, 3)})["x"].shape
    torch.Size([1, 3])

    :param batch: a model input that holds a tensor.
    """
    return cut(batch, 0, 1)


def call(model: nn.Module, batch: object) -> Any:
    """Run a model on a copy of a batch, as NNCF does: a tuple is spread, a dict becomes keyword arguments.

    The model may change what it gets: tensors, lists and dicts are its own.

    :param model: the network.
    :param batch: one of :func:`take_batches`; its tensors are moved to the model's device.
    :raises CalibrationError: where the model fails on it, with the model's own error as the cause.
    """
    try:
        return run(model, ready(model, batch))
    except LowRankError:
        raise
    except Exception as error:
        msg = (
            f"The model cannot take a calibration batch with tensors of shapes {shapes(batch)}: "
            f"{type(error).__name__}: {error}. It was called with {_arguments(batch)}, its signature is "
            f"{Forward.of(model).text}. Give batches (or a transform of the nncf.Dataset) that it takes."
        )
        raise CalibrationError(msg) from error


def ready(model: nn.Module, batch: object) -> Any:
    """A copy of a batch on the model's device.

    :param model: the network.
    :param batch: a model input.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return fresh(batch, device)


def run(model: nn.Module, batch: Any) -> Any:
    """Call a model with a batch itself, which it may change; for stopwatches, which must not count the copying.

    :param model: the network.
    :param batch: made :func:`ready`.
    """
    if isinstance(batch, tuple) and not is_movable(batch):
        return model(*batch)
    return model(**batch) if isinstance(batch, dict) else model(batch)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode and without gradients, and back as it was, whatever context this is called in.

    Outside of ``torch.inference_mode`` and without ``torch.autocast``, so that numbers do not depend on the caller's.

    :param model: the network; modules keep their own train flags afterwards, and what else they carried before
        (:func:`lowrank_plugin.support.keeping.kept`).
    """
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with undisturbed(), kept(model), torch.no_grad():
            yield
    finally:
        for module, training in flags.items():
            module.training = training


def _reader(model: nn.Module) -> Reader:
    def runs(batch: object) -> bool:
        try:
            with evaluating(model):
                call(model, batch)
        except CalibrationError:
            return False
        return True

    return Reader(Forward.of(model), runs)


def _items(data: Any) -> Iterable[object]:
    if isinstance(data, Tensor | Mapping):
        return [data]
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        msg = (
            f"Expected the calibration data to be batches, but a {type(data).__name__} yields single samples. Wrap it: "
            "torch.utils.data.DataLoader(data, batch_size=32)."
        )
        raise CalibrationError(msg)
    try:
        return iter(data)
    except TypeError as error:
        msg = (
            "Expected the calibration data to be an nncf.Dataset, a DataLoader or an iterable of batches, got "
            f"{type(data).__name__}."
        )
        raise CalibrationError(msg) from error


def _checked(batch: object, item: object, place: int | None) -> int:
    """The number of samples, at least one."""
    count = _counted(batch, item).count
    if not count:
        which = "The example input" if place is None else f"Batch {place} of the calibration data"
        msg = f"{which} holds no sample: its tensors are of shapes {shapes(batch)}."
        raise CalibrationError(msg)
    return count


def _counted(batch: object, item: object) -> Samples:
    if (samples := Samples.of(batch)) is not None:
        return samples
    kinds = sorted({type(leaf).__name__ for leaf in leaves(item)})
    inside = f" of {', '.join(kinds)}" if kinds != [type(item).__name__] else ""
    msg = (
        f"Expected a batch to hold at least one torch.Tensor, but it is {type(item).__name__}{inside}: {item!r:.80}. "
        "Give what the model takes: tensors, or tuples, lists and dicts of them (torch.from_numpy for arrays)."
    )
    raise CalibrationError(msg)


def _pieces(batch: object, most: int) -> list[object]:
    samples = _counted(batch, batch)
    if samples.whole:
        return [batch]
    return [cut(batch, start, start + most) for start in range(0, samples.count, most)]


def _arguments(batch: object) -> str:
    if isinstance(batch, tuple) and not is_movable(batch):
        return f"{len(batch)} positional argument{'s' * (len(batch) != 1)}"
    return f"the keywords {', '.join(map(str, batch))}" if isinstance(batch, dict) else f"one {type(batch).__name__}"
