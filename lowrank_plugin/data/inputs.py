# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""From what users have, often with labels, to what a model is called with."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from lowrank_plugin.data.samples import is_container, is_movable, is_named, named_parts
from lowrank_plugin.support.messages import listed

logger = logging.getLogger(__name__)

_WRAPPED = ("_orig_mod", "module", "base_model", "model")
"""Where wrappers keep the model that they pass everything on to."""


@dataclass(frozen=True)
class Forward:
    """What the forward of a model takes.

    :param positional: its required parameters that may be given by position.
    :param required: all of its required parameters.
    :param names: all parameters that may be given by name.
    :param spreads: whether it takes any number by position (``*args``).
    :param collects: whether it takes any name (``**kwargs``).
    :param text: the signature as it is written.
    """

    positional: tuple[str, ...]
    required: frozenset[str]
    names: frozenset[str]
    spreads: bool
    collects: bool
    text: str

    @classmethod
    def of(cls, model: nn.Module) -> Forward:
        """Look at the forward of a model, or of what it wraps where it passes everything on.

        >>> Forward.of(nn.DataParallel(nn.Sequential(nn.Linear(2, 2)))).positional
        ('input',)

        :param model: the network.
        """
        signature, seen = _signature(model), {model}
        while _passes_on(signature) and (inner := _wrapped(model)) is not None and inner not in seen:
            model = inner
            seen.add(model)
            signature = _signature(model)
        kinds = inspect.Parameter
        parameters = list(signature.parameters.values())
        needed = [each for each in parameters if each.default is kinds.empty]
        return cls(
            tuple(each.name for each in needed if each.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)),
            frozenset(each.name for each in needed if each.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)),
            frozenset(
                each.name for each in parameters if each.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
            ),
            any(each.kind is kinds.VAR_POSITIONAL for each in parameters),
            any(each.kind is kinds.VAR_KEYWORD for each in parameters),
            f"forward{signature.replace(return_annotation=signature.empty)}",
        )

    def by_name(self, item: object) -> dict[str, Any] | None:
        """The parts of something named that are parameters; None unless all that are required are among them."""
        if not is_named(item):
            return None
        known = {name: part for name, part in named_parts(item).items() if self.collects or name in self.names}
        return known if known and self.required <= known.keys() else None


@dataclass
class Reader:
    """Tells inputs from labels.

    :param forward: what the model takes.
    :param runs: whether the model runs on a batch.
    """

    forward: Forward
    runs: Callable[[object], bool]
    _whole: bool | None = field(default=None, init=False)
    _dropped: set[str] = field(default_factory=set, init=False)

    def item(self, item: object) -> object:
        """The model's input of an item of a data loader, or of any other iterable.

        :param item: with labels or without.
        """
        if is_named(item):
            return self._named(item)
        if isinstance(item, tuple | list) and not is_movable(item):
            return _plain(self._positional(item))
        return item

    def given(self, item: object) -> object:
        """What NNCF would call the model with: of an ``nncf.Dataset`` whose transform gives the input.

        :param item: without labels: a tuple is spread, a dict names the arguments, all else, a list too, is one.
        """
        if isinstance(item, Mapping) or is_named(item):
            return item if type(item) is dict else self.forward.by_name(item) or (item,)
        return (item,) if isinstance(item, list) else item

    def example(self, item: object) -> object:
        """What to call the model with for an example: as :meth:`given`, but a list is spread where it can be.

        :param item: without labels.
        """
        if isinstance(item, list):
            return (item,) if self._is_one(item) else tuple(item)
        return self.given(item)

    def _named(self, item: object) -> object:
        parts, known = named_parts(item), self.forward.by_name(item)
        if known is None:
            # nothing else can be meant where no name is one of forward's
            return (item,) if len(self.forward.positional) < 2 and not self.forward.names & parts.keys() else parts
        if new := parts.keys() - known.keys() - self._dropped:
            self._dropped |= new
            logger.warning(
                "The entries %s of the calibration batches are left out: %s has no such parameters.",
                listed(sorted(new)),
                self.forward.text,
            )
        return known

    def _positional(self, item: tuple[object, ...] | list[object]) -> object:
        if self.forward.spreads or not item:
            return tuple(item)
        wanted = max(1, len(self.forward.positional))
        first = item[0]
        if len(item) <= 2 and self.forward.by_name(first) is not None:
            return self._named(first)
        if _is_nested(first, item[1:], wanted):
            return tuple(cast("Iterable[object]", first))
        return (item,) if self._is_one(item) else tuple(item[:wanted])

    def _is_one(self, item: tuple[object, ...] | list[object]) -> bool:
        """Whether a list is one argument, such as a list of images: where it looks like that, the model is asked."""
        if not isinstance(item, list) or len(self.forward.positional) > 1 or not _are_alike(item):
            return False
        if self._whole is None:
            self._whole = self.runs((item,))
        return self._whole


def is_one_shot(data: object) -> bool:
    """Whether data can be gone through only once, as a generator can, also one inside an ``nncf.Dataset``.

    >>> is_one_shot(x for x in [1]), is_one_shot([1])
    (True, False)

    :param data: calibration data.
    """
    source = getattr(data, "_data_source", data)
    return hasattr(source, "__next__")


def _plain(arguments: object) -> object:
    """A single argument by itself, where it is not taken for several then."""
    if isinstance(arguments, tuple) and len(arguments) == 1 and not is_container(arguments[0]):
        return arguments[0]
    return arguments


def _is_nested(first: object, rest: tuple[object, ...] | list[object], wanted: int) -> bool:
    """Whether the first of an item holds all inputs, as in ((a, b), labels)."""
    if not isinstance(first, tuple | list) or is_movable(first) or len(first) != wanted or len(rest) > 1:
        return False
    if not all(isinstance(part, Tensor) and part.dim() for part in (*first, *rest)):
        return False
    if wanted == 1 and (not rest or first[0].dim() == 3):
        return False
    return len({part.shape[0] for part in (*first, *rest)}) == 1


def _are_alike(item: list[object]) -> bool:
    """Whether the entries may be samples: all named, or all images or of different lengths."""
    if not item:
        return False
    if all(is_named(part) for part in item):
        return True
    tensors = [part for part in item if isinstance(part, Tensor)]
    if len(tensors) < len(item) or len({tensor.dim() for tensor in tensors}) > 1 or not tensors[0].dim():
        return False
    return tensors[0].dim() == 3 or len({tensor.shape[0] for tensor in tensors}) > 1


def _signature(model: nn.Module) -> inspect.Signature:
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):
        pass
    # of scripted models only the schema tells
    parameter = inspect.Parameter
    arguments = getattr(getattr(model.forward, "schema", None), "arguments", None)
    if arguments is None:
        return inspect.signature(lambda *args, **kwargs: None)
    return inspect.Signature(
        [
            parameter(
                each.name,
                parameter.POSITIONAL_OR_KEYWORD,
                default=each.default_value if each.has_default_value() else parameter.empty,
            )
            for each in arguments[1:]
        ]
    )


def _passes_on(signature: inspect.Signature) -> bool:
    kinds = {each.kind for each in signature.parameters.values()}
    return kinds == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def _wrapped(model: nn.Module) -> nn.Module | None:
    for name in _WRAPPED:
        if (inner := model._modules.get(name)) is not None:
            return inner
    children = list(model.children())
    return children[0] if len(children) == 1 else None
