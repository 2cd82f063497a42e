# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What a user could notice of a model, of data and of the process: the same before and after, or it was changed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size)


class Fingerprint:
    """Facts by where they are, kept together with the objects that they are about, so that no id is given twice."""

    def __init__(self, model: nn.Module | None, *data: Any) -> None:
        self.facts: dict[str, Any] = {}
        self._alive: list[Any] = []
        for name, module in [] if model is None else model.named_modules(remove_duplicate=False):
            self._module(name or "model", module)
        for index, leaf in enumerate(pytree.tree_leaves(data)):
            self._value(f"data {index}", leaf)
        self._surroundings()

    def _module(self, name: str, module: nn.Module) -> None:
        self._alive.append(module)
        self.facts[name] = (id(module), type(module), module.training)
        self.facts[f"{name}: attributes"] = list(vars(module))
        for attribute, value in vars(module).items():
            self._value(f"{name}.{attribute}", value)

    def _value(self, place: str, value: Any) -> None:
        self._alive.append(value)
        if isinstance(value, Tensor):
            self._tensor(place, value)
        elif isinstance(value, _PLAIN):
            self.facts[place] = value
        else:
            self.facts[place] = (id(value), type(value))
        if isinstance(value, Mapping):
            self.facts[f"{place}: keys"] = [key if isinstance(key, _PLAIN) else id(key) for key in value]
            for key, each in value.items():
                self._item(f"{place}[{key!r:.40}]", each)
        elif isinstance(value, list | tuple | deque) and not isinstance(value, _PLAIN):
            self.facts[f"{place}: length"] = len(value)
            for index, each in enumerate(value):
                self._item(f"{place}[{index}]", each)
        elif isinstance(value, set | frozenset):
            self.facts[f"{place}: members"] = {id(each) for each in value}

    def _item(self, place: str, value: Any) -> None:
        self._alive.append(value)
        if isinstance(value, Tensor):
            self._tensor(place, value)
        elif isinstance(value, list | tuple | dict) and not isinstance(value, _PLAIN):
            self._value(place, value)
        else:
            self.facts[place] = value if isinstance(value, _PLAIN) else id(value)

    def _tensor(self, place: str, value: Tensor) -> None:
        flags = (type(value), value.dtype, value.device, tuple(value.shape), value.requires_grad, value.is_leaf)
        self.facts[place] = (id(value), *flags)
        if not (nn.parameter.is_lazy(value) or value.is_meta):
            self.facts[f"{place}: values"] = _Numbers(value)
        gradient = value.grad if value.is_leaf else None
        self.facts[f"{place}: gradient"] = None if gradient is None else (id(gradient), _Numbers(gradient))
        self._alive.append(gradient)

    def _surroundings(self) -> None:
        name, keys, *rest = numpy.random.get_state()
        self.facts |= {
            "torch's generator": _Numbers(torch.get_rng_state()),
            "numpy's generator": (name, keys.tobytes(), *rest),
            "random's generator": random.getstate(),
            "gradients": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
            "default dtype": torch.get_default_dtype(),
            "attention": torch.backends.mha.get_fastpath_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "threads": torch.get_num_threads(),
        }


class _Numbers:
    """The entries of a tensor, equal where they are to the bit."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach().clone()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Numbers) and bool(
            torch.equal(torch.nan_to_num(self.tensor), torch.nan_to_num(other.tensor))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{self.tensor.flatten()[:4].tolist()}"


def changes(before: Fingerprint, after: Fingerprint) -> list[str]:
    """Where two fingerprints differ, in words."""
    places = [*before.facts, *(place for place in after.facts if place not in before.facts)]
    missing = object()
    return [
        f"{place}: {before.facts.get(place, 'absent')} -> {after.facts.get(place, 'absent')}"
        for place in places
        if before.facts.get(place, missing) != after.facts.get(place, missing)
    ]


@contextmanager
def unchanged(model: nn.Module | None, *data: Any) -> Iterator[None]:
    """See that nothing of a model, of data and of the process is changed meanwhile."""
    before = Fingerprint(model, *data)
    yield
    assert not changes(before, Fingerprint(model, *data))
