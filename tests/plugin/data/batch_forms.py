# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Forms of batches that people bring, each with what a user expects to happen."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence


class Encoding(UserDict):
    """As tokenizers give it: the items are attributes too."""

    def __init__(self, data: dict[str, Any], encodings: object = None) -> None:
        super().__init__(data)
        self._encodings = encodings

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Entries(dict):
    """A dict subclass."""


class Frozen(Mapping):
    """A mapping that is no dict."""

    def __init__(self, **items: Any) -> None:
        self._items = items

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Any:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


@dataclass
class Record:
    """A dataclass."""

    a: Tensor
    b: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class FrozenRecord:
    """A frozen one."""

    a: Tensor
    labels: Tensor | None = None


@dataclass
class OutputLike(OrderedDict):
    """Items and attributes at once, as transformers' ModelOutput."""

    a: Tensor
    b: Tensor

    def __post_init__(self) -> None:
        self["a"], self["b"] = self.a, self.b


Pair = namedtuple("Pair", "a b")


class Takes(nn.Module):
    """Keeps what its forward was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []


class One(Takes):
    def forward(self, a):
        self.calls.append({"a": a})


class Optional(Takes):
    def forward(self, a, mask=None, *, scale=None):
        self.calls.append({"a": a, "mask": mask, "scale": scale})


class Two(Takes):
    def forward(self, a, b):
        self.calls.append({"a": a, "b": b})


class TwoOptional(Takes):
    def forward(self, a, b, targets=None):
        self.calls.append({"a": a, "b": b, "targets": targets})


class AllOptional(Takes):
    def forward(self, a=None, b=None, labels=None):
        self.calls.append({"a": a, "b": b, "labels": labels})


class Many(Takes):
    def forward(self, *inputs):
        self.calls.append({"inputs": inputs})


class Keywords(Takes):
    def forward(self, a, **others):
        self.calls.append({"a": a, **others})


class Batch(Takes):
    def forward(self, batch):
        self.calls.append({"batch": batch})


class Detector(Takes):
    """As torchvision's: refuses what is no list of images."""

    def forward(self, images, targets=None):
        if not isinstance(images, list | tuple) or any(image.dim() != 3 for image in images):
            msg = "images is expected to be a list of 3d tensors"
            raise ValueError(msg)
        self.calls.append({"images": images, "targets": targets})


class PerImage(Takes):
    """As detectron2's: a list of dicts."""

    def forward(self, batched_inputs):
        if any(each["image"].dim() != 3 for each in batched_inputs):
            msg = "images are expected to be 3d tensors"
            raise ValueError(msg)
        self.calls.append({"batched_inputs": batched_inputs})


A, B, Y = torch.arange(32.0).reshape(8, 4), torch.arange(40.0).reshape(8, 5), torch.arange(8)
IMAGES = [torch.rand(3, 16, 20), torch.rand(3, 24, 18), torch.rand(3, 16, 16)]
SAME = [torch.rand(3, 16, 16), torch.rand(3, 16, 16)]
BOXES = [{"boxes": torch.rand(n, 4), "labels": torch.zeros(n, dtype=torch.long)} for n in (2, 1, 5)]
DICTS = [{"image": image, "height": 3} for image in IMAGES]
NODES, EDGES = torch.rand(30, 5), torch.randint(30, (2, 90))
TOKENS = torch.rand(8, 5, 4)
NONE = {"mask": None, "scale": None}

FORMS: dict[str, tuple[type[Takes], object, dict[str, Any], int]] = {
    # model, item, what forward is to be called with, samples
    "tensor": (One, A, {"a": A}, 8),
    "tuple of one": (One, (A,), {"a": A}, 8),
    "list of one": (One, [A], {"a": A}, 8),
    "labels": (One, (A, Y), {"a": A}, 8),
    "labels in a list": (One, [A, Y], {"a": A}, 8),
    "labels and indices": (One, (A, Y, Y), {"a": A}, 8),
    "labels as large as the input": (One, [A, A], {"a": A}, 8),
    "labels are no mask": (Optional, (A, Y), {"a": A, **NONE}, 8),
    "a mask by position is none either": (Optional, [A, B], {"a": A, **NONE}, 8),
    "a mask by name": (Optional, {"a": A, "mask": B}, {"a": A, "mask": B, "scale": None}, 8),
    "two inputs": (Two, (A, B), {"a": A, "b": B}, 8),
    "two inputs and labels": (Two, (A, B, Y), {"a": A, "b": B}, 8),
    "two inputs and labels, list": (Two, [A, B, Y], {"a": A, "b": B}, 8),
    "two inputs together, labels": (Two, ((A, B), Y), {"a": A, "b": B}, 8),
    "two inputs together, lists": (Two, [[A, B], Y], {"a": A, "b": B}, 8),
    "two inputs by name, labels": (Two, ({"a": A, "b": B}, Y), {"a": A, "b": B}, 8),
    "two inputs in an encoding, labels": (Two, [Encoding({"a": A, "b": B}), Y], {"a": A, "b": B}, 8),
    "one input together with labels": (One, ((A,), Y), {"a": A}, 8),
    "two of three": (TwoOptional, (A, B, Y), {"a": A, "b": B, "targets": None}, 8),
    "two of three, together": (TwoOptional, ((A, B), Y), {"a": A, "b": B, "targets": None}, 8),
    "nothing is required": (AllOptional, (A, Y), {"a": A, "b": None, "labels": None}, 8),
    "nothing is required, by name": (AllOptional, {"a": A, "labels": Y}, {"a": A, "b": None, "labels": Y}, 8),
    "everything is taken": (Many, (A, B, Y), {"inputs": (A, B, Y)}, 8),
    "named tuple": (Two, Pair(A, B), {"a": A, "b": B}, 8),
    "named tuple, labels": (One, Pair(A, Y), {"a": A}, 8),
    "dict": (One, {"a": A}, {"a": A}, 8),
    "dict with labels": (One, {"a": A, "labels": Y}, {"a": A}, 8),
    "dict for keywords": (Keywords, {"a": A, "labels": Y}, {"a": A, "labels": Y}, 8),
    "dict with flags": (Optional, {"a": A, "mask": None, "scale": True}, {"a": A, "mask": None, "scale": True}, 8),
    "user dict": (Two, UserDict(a=A, b=B), {"a": A, "b": B}, 8),
    "encoding": (Two, Encoding({"a": A, "b": B}, encodings="kept"), {"a": A, "b": B}, 8),
    "dict subclass": (Two, Entries(a=A, b=B), {"a": A, "b": B}, 8),
    "ordered dict": (Two, OrderedDict(a=A, b=B), {"a": A, "b": B}, 8),
    "default dict": (Two, defaultdict(list, a=A, b=B), {"a": A, "b": B}, 8),
    "mapping proxy": (Two, MappingProxyType({"a": A, "b": B}), {"a": A, "b": B}, 8),
    "mapping": (Two, Frozen(a=A, b=B), {"a": A, "b": B}, 8),
    "output": (Two, OutputLike(A, B), {"a": A, "b": B}, 8),
    "dataclass": (Two, Record(A, B, Y), {"a": A, "b": B}, 8),
    "frozen dataclass": (One, FrozenRecord(A, Y), {"a": A}, 8),
    "dict as one argument": (Batch, {"x": A, "y": Y}, {"batch": {"x": A, "y": Y}}, 8),
    "encoding as one argument": (Batch, Encoding({"x": A}), {"batch": Encoding({"x": A})}, 8),
    "dataclass as one argument": (Batch, Record(A, B, Y), {"batch": Record(A, B, Y)}, 8),
    "frozen dataclass as one argument": (Batch, FrozenRecord(A, Y), {"batch": FrozenRecord(A, Y)}, 8),
    "output as one argument": (Batch, OutputLike(A, B), {"batch": OutputLike(A, B)}, 8),
    "named tuple inside": (Batch, (Pair(A, B), Y), {"batch": Pair(A, B)}, 8),
    "pair as one argument": (Batch, ((A, B), Y), {"batch": (A, B)}, 8),
    "images and targets": (Detector, (IMAGES, BOXES), {"images": IMAGES, "targets": None}, 3),
    "images and targets, zipped": (Detector, (tuple(IMAGES), tuple(BOXES)), {"images": tuple(IMAGES)}, 3),
    "images and targets, list": (Detector, [IMAGES, BOXES], {"images": IMAGES, "targets": None}, 3),
    "images, no targets": (Detector, (IMAGES, None), {"images": IMAGES, "targets": None}, 3),
    "images of one size": (Detector, (SAME, None), {"images": SAME, "targets": None}, 2),
    "images alone": (Detector, IMAGES, {"images": IMAGES, "targets": None}, 3),
    "one image alone": (Detector, IMAGES[:1], {"images": IMAGES[:1], "targets": None}, 1),
    "images by name": (Detector, {"images": IMAGES, "targets": BOXES}, {"images": IMAGES, "targets": BOXES}, 3),
    "dicts of images": (PerImage, DICTS, {"batched_inputs": DICTS}, 3),
    "dicts of images in a tuple": (PerImage, (DICTS,), {"batched_inputs": DICTS}, 3),
    "sequences of three axes": (One, [torch.ones(1, 7, 4), Y], {"a": torch.ones(1, 7, 4)}, 1),
    "waveforms": (Batch, ([torch.ones(100), torch.ones(80)], Y), {"batch": [torch.ones(100), torch.ones(80)]}, 2),
    "features of several scales": (
        Batch, ([torch.ones(4, 8, 6, 6), torch.ones(4, 16, 3, 3)], Y),
        {"batch": [torch.ones(4, 8, 6, 6), torch.ones(4, 16, 3, 3)]}, 4,
    ),
    "graph": (Two, (NODES, EDGES), {"a": NODES, "b": EDGES}, 1),
    "graph and labels": (Two, (NODES, EDGES, torch.zeros(30)), {"a": NODES, "b": EDGES}, 1),
    "graph by name": (Two, {"a": NODES, "b": EDGES}, {"a": NODES, "b": EDGES}, 1),
    "sparse graph": (Two, (NODES, torch.eye(30).to_sparse()), {"a": NODES, "b": torch.eye(30).to_sparse()}, 1),
    "dense graph": (Two, (NODES, torch.eye(30)), {"a": NODES, "b": torch.eye(30)}, 30),
    "a mask for all": (Two, (TOKENS, torch.ones(5, 5)), {"a": TOKENS, "b": torch.ones(5, 5)}, 8),
    "a broadcast mask": (Two, (torch.ones(8, 5), torch.ones(1, 5)), {"a": torch.ones(8, 5), "b": torch.ones(1, 5)}, 8),
    "a number for all": (Two, (A, torch.tensor(3.0)), {"a": A, "b": torch.tensor(3.0)}, 8),
    "a recurrent state": (
        Two, (TOKENS, (torch.zeros(2, 8, 3), torch.zeros(2, 8, 3))),
        {"a": TOKENS, "b": (torch.zeros(2, 8, 3), torch.zeros(2, 8, 3))}, 1,
    ),
    "packed sequence": (Batch, pack_sequence([torch.ones(3, 2), torch.ones(2, 2)]), {}, 1),
    "packed sequence, labels": (Batch, (pack_sequence([torch.ones(3, 2), torch.ones(2, 2)]), Y), {}, 1),
}  # fmt: skip


def same(first: Any, second: Any) -> bool:
    """Whether two values are of the same types all through and their tensors equal."""
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        return first.layout == second.layout and torch.equal(first.to_dense(), second.to_dense())
    if isinstance(first, Mapping):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if hasattr(first, "__dataclass_fields__"):
        return all(same(getattr(first, name), getattr(second, name)) for name in first.__dataclass_fields__)
    return bool(first == second)
