# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Which tensors of what a model returns count, as what, and all of them as one matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from torch import Tensor, nn

from lowrank_plugin.data.samples import is_container, is_named, mapped, named_parts
from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.outputs.given import Given, LossFunction
from lowrank_plugin.outputs.joint import Joint, Layout, unit_of
from lowrank_plugin.outputs.kinds import AUTO, CALLABLE, INSIDE, Described, Output, judged, vocabulary
from lowrank_plugin.outputs.losses import Loss, is_constant
from lowrank_plugin.support.messages import suggestion


def named_tensors(output: object, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of what a model returned, with their names; that of a tensor by itself is empty.

    >>> import torch
    >>> [name for name, _ in named_tensors({"logits": torch.zeros(1), "aux": (torch.zeros(1), torch.zeros(1))})]
    ['logits', 'aux.0', 'aux.1']

    :param output: whatever the model returned.
    :param path: where it stands in something larger.
    """
    if isinstance(output, Tensor):
        yield path, output
    elif is_container(output):
        for name, part in _parts(output).items():
            yield from named_tensors(part, f"{path}.{name}" if path else name)


@dataclass(frozen=True)
class Leaf:
    """An output that counts.

    :param name: its name.
    :param tensor: logits or values, float32.
    :param loss: what a change of it costs.
    """

    name: str
    tensor: Tensor
    loss: Loss


@dataclass(frozen=True)
class Whole:
    """All outputs that count as one tensor, to refit a network to.

    :param kinds: what they are, by their names.
    :param layout: where each stands; None for one as it is.
    :param loss: what a change of the whole costs.
    """

    kinds: Mapping[str, Output]
    layout: Layout | None
    loss: Loss

    def of(self, output: object) -> Tensor | None:
        """That tensor; None where there are other outputs, or they are of other shapes.

        :param output: what the model returned.
        """
        tensors = dict(named_tensors(output))
        if not self.kinds.keys() <= tensors.keys():
            return None
        found = [kind.logits(_at_least_single(tensors[name])) for name, kind in self.kinds.items()]
        if self.layout is None:
            return found[0]
        return self.layout.joined(found) if Layout.of(found) == self.layout else None


@dataclass
class Outputs:
    """Reads what one model puts out.

    >>> import torch
    >>> outputs = Outputs()
    >>> [(leaf.name, leaf.loss) for leaf in outputs.read({"logits": torch.zeros(8, 10), "loss": torch.tensor(0.7)})]
    [('logits', Softmax(axis=1, share=1.0))]
    >>> outputs.left_out
    {'loss': 'it is a single number'}

    :param described: what the user says of them.
    :param words: how many words the model tells apart, if it is a language model.
    :param left_out: outputs that were read and do not count, and why.
    """

    described: Described = AUTO
    words: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    _units: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, model: nn.Module, described: Described) -> Outputs:
        """Those of a model.

        :param model: the network.
        :param described: what the user says of them.
        """
        return cls(described, vocabulary(model))

    @property
    def unit(self) -> str | None:
        """What the losses of the outputs that counted until now are in; None where none did."""
        return unit_of(self._units) if self._units else None

    @property
    def is_lost(self) -> bool:
        """Whether a function was given that could not be written down."""
        return self.described == CALLABLE

    def count(self, leaf: Leaf) -> None:
        """Remember that an output counted, for :attr:`unit`."""
        self._units.add(leaf.loss.unit)

    def read(self, output: object) -> list[Leaf]:
        """The outputs that count, each with what a change of it costs; with a user's own loss they are one.

        :param output: what the model returned.
        :raises ConfigurationError: where what the user says of its outputs does not fit.
        """
        kinds = self.kinds(output)
        if callable(self.described):
            whole = _given(self.described, output, kinds)
            joined = None if whole is None else whole.of(output)
            return [] if whole is None or joined is None else [Leaf("", joined.float(), whole.loss)]
        tensors = dict(named_tensors(output))
        logits = {name: kind.logits(tensors[name].float()) for name, kind in kinds.items()}
        return [Leaf(name, each, kinds[name].loss(each)) for name, each in logits.items()]

    def whole(self, output: object) -> Whole | None:
        """The outputs that count as one tensor; None where none does, or they are not of the same samples.

        :param output: what the model returned; the same will count of what it returns for other batches.
        :raises ConfigurationError: where what the user says of its outputs does not fit.
        """
        kinds = self.kinds(output)
        if callable(self.described):
            found = _given(self.described, output, kinds)
            return None if found is None or found.layout is None or found.layout.together else found
        tensors = dict(named_tensors(output))
        parts = [kind.logits(_at_least_single(tensors[name])) for name, kind in kinds.items()]
        losses = tuple(kind.loss(each) for kind, each in zip(kinds.values(), parts, strict=True))
        if len(parts) == 1:
            return Whole(kinds, None, losses[0])
        layout = Layout.of(parts) if parts else None
        return None if layout is None or layout.together else Whole(kinds, layout, Joint(layout, losses))

    def kinds(self, output: object) -> dict[str, Output]:
        """What the outputs that count are, by their names; the others are told in :attr:`left_out`.

        :param output: what the model returned.
        :raises ConfigurationError: where what the user says of its outputs does not fit.
        """
        if self.is_lost:
            msg = 'What the output is was said by a function, which cannot be written down: give it again as "output".'
            raise ConfigurationError(msg)
        tensors = dict(named_tensors(output))
        said = self._said(list(tensors))
        kinds: dict[str, Output] = {}
        inside: dict[str, Output] = {}
        for name, tensor in tensors.items():
            if (reason := _unfit(tensor)) or (name in said and said[name] is None):
                self.left_out[name] = reason or "it is to be ignored"
                continue
            kind = said.get(name) or judged(tensor, name, self.words)
            if kind.kind == "values" and not callable(self.described) and is_constant(tensor):
                self.left_out[name] = "it is the same everywhere"
            elif name not in said and _is_inside(name):
                inside[name] = kind
            else:
                kinds[name] = kind
        if kinds:
            self.left_out.update(dict.fromkeys(inside, "it is a loss, or goes on inside of the model"))
        return kinds or inside

    def _said(self, names: Sequence[str]) -> dict[str, Output | None]:
        """What the user says of outputs; those that nothing is said of have no entry."""
        if isinstance(self.described, Output):
            # a loss, or what goes on inside, is not meant
            return {name: self.described for name in names if not _is_inside(name)}
        if callable(self.described):
            return dict.fromkeys(names, Output("values"))
        if not isinstance(self.described, Mapping):
            return {}
        said: dict[str, Output | None] = {}
        for key, kind in self.described.items():
            found = [name for name in names if _matches(key, name)]
            if not found and key.isdigit() and int(key) < len(names):
                found = [names[int(key)]]
            if not found:
                known = ", ".join(f"{name or 'a tensor by itself'} ({place})" for place, name in enumerate(names))
                msg = f'The model has no output {key!r}, which "output" names. {suggestion(key, names)}It has: {known}.'
                raise ConfigurationError(msg)
            said |= dict.fromkeys(found, kind)
        return said


def _given(function: LossFunction, output: object, kinds: Mapping[str, Output]) -> Whole | None:
    """The outputs as a user's own loss gets them."""
    tensors = dict(named_tensors(output))
    if not kinds:
        return None
    layout = Layout.of([tensors[name] for name in kinds])
    template = mapped(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, output)
    return Whole(kinds, layout, Given(function, layout, partial(_rebuilt, template, list(kinds))))


def _rebuilt(template: object, names: Sequence[str], tensors: Sequence[Tensor]) -> object:
    """What the model returned, with some of its tensors replaced, and None in the place of the others."""
    replaced = dict(zip(names, tensors, strict=True))
    found = iter([replaced.get(name) for name, _ in named_tensors(template)])
    return mapped(lambda leaf: next(found) if isinstance(leaf, Tensor) else leaf, template)


def _parts(output: object) -> dict[str, object]:
    if is_named(output):
        return named_parts(output)
    if isinstance(output, Mapping):
        return {str(key): part for key, part in output.items()}
    parts = cast("Sequence[object]", output)
    return dict(zip(getattr(output, "_fields", None) or map(str, range(len(parts))), parts, strict=True))


def _matches(key: str, name: str) -> bool:
    if name == key or name.startswith(f"{key}."):
        return True
    return not key.isdigit() and f".{key}." in f".{name}."


def _unfit(tensor: Tensor) -> str:
    """Why a tensor is no output that a change could cost anything at; empty where it is one."""
    if not tensor.is_floating_point():
        return "it holds no floating-point numbers"
    if not tensor.dim():
        return "it is a single number"
    return "" if tensor.numel() else "it is empty"


def _is_inside(name: str) -> bool:
    parts = name.split(".")
    return parts[-1] == "loss" or parts[-1].endswith("_loss") or any(part.endswith(INSIDE) for part in parts)


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype.itemsize >= 4 else tensor.float()


def told(left_out: Mapping[str, str]) -> str:
    """Why outputs do not count, in a phrase.

    >>> told({"boxes": "it is empty", "": "it is a single number"})
    'boxes: it is empty; the output: it is a single number'

    :param left_out: the reasons by name.
    """
    return "; ".join(f"{name or 'the output'}: {reason}" for name, reason in left_out.items())
