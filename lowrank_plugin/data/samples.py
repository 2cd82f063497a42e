# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What a batch holds: its tensors, wherever they are, how many samples they are of, and pieces of it.

A batch is what a model is called with: a tuple of positional arguments, a dict of keyword arguments, or one argument.
An argument is a tensor, or a list, tuple, named tuple, mapping or dataclass of arguments; everything else is handed on
as it is.

**Samples.** Tensors have theirs on the first axis. A list of tensors of three axes (images [C, H, W]) or of one
(waveforms), of tensors that differ in their first axis, or of containers, holds a sample an entry. Where all agree on a
number, that is the number of samples; tensors without axes do not count. Where they do not, square matrices, such as
masks [T, T], do not count either, and then first axes of length 1. Where what is left does not agree, as the nodes
[N, F] and edges [2, E] of a graph, the batch is one sample.

**Pieces.** Only where all agree is a batch ever cut, and not where one of several tensors is a square matrix over the
samples, as the adjacency [N, N] of a graph is.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Sizes = tuple[int, ...] | None
"""Numbers of samples that a value may be of, the likelier first: none that fits, or None where any does."""

_GIVEN = WeakTensorKeyDictionary()
"""The shapes of the tensors that pieces were cut from, for messages."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """How many samples a batch holds.

    :param count: the number; 1 where the tensors do not agree on any.
    :param whole: whether the batch must not be cut.
    """

    count: int
    whole: bool

    @classmethod
    def of(cls, batch: object) -> Samples | None:
        """Count them; None where the batch holds no tensor.

        >>> Samples.of((torch.zeros(8, 3), torch.zeros(8)))
        Samples(count=8, whole=False)
        >>> Samples.of(([torch.zeros(3, 16, 20), torch.zeros(3, 24, 16)],))
        Samples(count=2, whole=False)
        >>> Samples.of({"x": torch.zeros(30, 5), "edge_index": torch.zeros(2, 90)})
        Samples(count=1, whole=True)

        :param batch: a model input.
        """
        held = list(leaves(batch))
        if not any(isinstance(leaf, Tensor) or is_movable(leaf) for leaf in held):
            return None
        sizes = _sizes_of_batch(batch)
        if not sizes:
            return cls(1, whole=True)
        count = sizes[0]
        tensors = [leaf for leaf in held if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == count]
        square = [_is_square(tensor) for tensor in tensors]
        return cls(count, whole=any(square) and not all(square))


def cut(batch: object, start: int, stop: int) -> Any:
    """Some samples of a batch; all of them where it must stay whole.

    >>> cut((torch.zeros(8, 3), [torch.zeros(3, 4, 4)] * 8), 2, 5)[0].shape
    torch.Size([3, 3])

    :param batch: a model input that holds a tensor.
    :param start: the first sample.
    :param stop: the first one after them.
    """
    samples = Samples.of(batch)
    if samples is None or samples.whole:
        return batch
    beside = _has_tensor_argument(batch)

    def piece(value: object, beside: bool = False) -> object:
        if isinstance(value, Tensor):
            return _rows(value, start, stop) if value.dim() and value.shape[0] == samples.count else value
        if _may_be_samples(value, beside) and len(value) == samples.count:
            return value[start:stop]
        return rebuilt(value, piece)

    if isinstance(batch, tuple | dict) and not is_movable(batch):
        return rebuilt(batch, lambda argument: piece(argument, beside))
    return piece(batch)


def fresh(batch: object, device: torch.device) -> Any:
    """A copy that a model may change: of all tensors, on a device and without a past, and of what holds them.

    :param batch: any nesting.
    :param device: where its tensors are wanted.
    """

    def copied(leaf: object) -> object:
        if isinstance(leaf, Tensor):
            return leaf.detach().to(device, copy=True)
        return copy.deepcopy(leaf).to(device) if is_movable(leaf) else leaf

    return mapped(copied, batch)


def mapped(function: Callable[[object], object], value: object) -> object:
    """The same nesting, of the same types, with other leaves.

    >>> mapped(lambda leaf: leaf + 1, {"a": [1, 2], "b": (3,)})
    {'a': [2, 3], 'b': (4,)}

    :param function: makes a leaf of a leaf.
    :param value: any nesting.
    """
    return rebuilt(value, lambda part: mapped(function, part)) if is_container(value) else function(value)


def leaves(value: object) -> Iterator[object]:
    """What a nesting holds that is no container itself, in order.

    >>> list(leaves({"a": [1, 2], "b": (3,)}))
    [1, 2, 3]

    :param value: any nesting.
    """
    if is_container(value):
        for part in _parts(value):
            yield from leaves(part)
    else:
        yield value


def shapes(batch: object) -> list[tuple[int, ...]]:
    """The shapes of all tensors, as the user gave them: of pieces those of the whole.

    >>> shapes(cut(torch.zeros(8, 3), 0, 2))
    [(8, 3)]

    :param batch: any nesting.
    """
    tensors = [leaf for leaf in leaves(batch) if isinstance(leaf, Tensor)]
    return [_GIVEN.get(leaf) or (() if leaf.is_nested else tuple(leaf.shape)) for leaf in tensors]


class Movable(Protocol):
    """Something that can be brought to a device."""

    def to(self, device: torch.device) -> object:
        """Itself, or a copy there."""
        ...


def is_movable(value: object) -> TypeGuard[Movable]:
    """Whether something unknown can be brought to a device, so that it probably holds tensors, as a PackedSequence."""
    known = isinstance(value, Tensor | Mapping | list | type) or _is_record(value)
    return not known and callable(getattr(value, "to", None))


def is_named(value: object) -> bool:
    """Whether the parts have names: those of a mapping with strings for keys, and of a dataclass."""
    return _is_record(value) or (isinstance(value, Mapping) and all(isinstance(key, str) for key in value))


def named_parts(value: object) -> dict[str, Any]:
    """The parts by their names.

    :param value: something that :func:`is_named`.
    """
    if isinstance(value, Mapping):
        return dict(value)
    names = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def is_container(value: object) -> bool:
    """Whether it is something that parts are looked for in."""
    return (isinstance(value, Mapping | list | tuple) and not is_movable(value)) or _is_record(value)


def rebuilt(value: object, function: Callable[[Any], object]) -> Any:
    """A container of the same type, with something else in the place of each part; anything else as it is.

    :param value: whatever.
    :param function: makes a part of a part.
    """
    if not is_container(value):
        return value
    if isinstance(value, Mapping):
        return _mapping_like(value, {key: function(part) for key, part in value.items()})
    if isinstance(value, list):
        new_list = copy.copy(value)
        new_list[:] = [function(part) for part in value]
        return new_list
    if isinstance(value, tuple):
        parts = [function(part) for part in value]
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    new = copy.copy(value)
    for name, part in named_parts(value).items():
        # frozen ones too
        object.__setattr__(new, name, function(part))
    return new


def _is_record(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type | Mapping | Tensor)


def _parts(value: Any) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return named_parts(value).values() if _is_record(value) else value


def _mapping_like(value: Mapping[Any, Any], parts: dict[Any, object]) -> Mapping[Any, object]:
    if type(value) is dict or not isinstance(value, dict | UserDict):
        return parts
    if dataclasses.is_dataclass(value):
        # its class may want arguments, and keeps the parts twice: as items and as attributes
        new = type(value).__new__(type(value))
        vars(new).update({name: parts.get(name, each) for name, each in vars(value).items()})
    else:
        new = copy.copy(value)
    for key, part in parts.items():
        new[key] = part
    return new


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    piece = tensor[start:stop]
    _GIVEN[piece] = _GIVEN.get(tensor, tuple(tensor.shape))
    return piece


def _sizes_of_batch(batch: object) -> Sizes:
    if isinstance(batch, tuple | dict) and not is_movable(batch):
        beside = _has_tensor_argument(batch)
        return _common([*(batch.values() if isinstance(batch, dict) else batch)], beside)
    return _sizes(batch)


def _has_tensor_argument(batch: object) -> bool:
    """Whether a tensor stands beside other arguments; a tuple there is a state more likely than samples."""
    return isinstance(batch, tuple | dict) and any(isinstance(part, Tensor) and part.dim() for part in _parts(batch))


def _sizes(value: object, beside: bool = False) -> Sizes:
    if isinstance(value, Tensor):
        if value.is_nested or value.layout is not torch.strided:
            return ()
        return (value.shape[0],) if value.dim() else None
    if not is_container(value):
        return () if is_movable(value) else None
    own = _common(list(_parts(value)))
    if _may_be_samples(value, beside):
        return tuple(dict.fromkeys((len(value), *(own or ()))))
    return own


def _may_be_samples(value: object, beside: bool) -> TypeGuard[Sequence[object]]:
    """Whether a list may hold a sample an entry."""
    if not isinstance(value, list | tuple) or hasattr(value, "_fields") or (beside and isinstance(value, tuple)):
        return False
    if value and all(is_container(part) for part in value):
        # a sample an entry, where something is of a sample in each
        return all(any(_has_axes(leaf) for leaf in leaves(part)) for part in value)
    axes = {part.dim() if isinstance(part, Tensor) else 0 for part in value}
    if len(axes) != 1 or axes == {0}:
        return False
    # images, waveforms, or anything of different lengths
    if axes == {3} or (axes == {1} and isinstance(value, list)):
        return True
    return len({part.shape[0] for part in value}) > 1 or (len(value) == 1 and axes == {2})


def _has_axes(leaf: object) -> bool:
    return is_movable(leaf) or (isinstance(leaf, Tensor) and leaf.dim() > 0)


def _common(values: list[Any], beside: bool = False) -> Sizes:
    """Sizes that all values may be of."""
    found = [(value, sizes) for value in values if (sizes := _sizes(value, beside)) is not None]
    every = [sizes for _, sizes in found]
    if not every:
        return None
    firm = [sizes for value, sizes in found if not (isinstance(value, Tensor) and _is_square(value))]
    return _in_all(every) or _in_all(firm) or _in_all([sizes for sizes in firm if 1 not in sizes])


def _in_all(found: list[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(size for size in found[0] if all(size in sizes for sizes in found)) if found else ()


def _is_square(tensor: Tensor) -> bool:
    plain = tensor.layout is torch.strided and not tensor.is_nested
    return plain and tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1] > 1
