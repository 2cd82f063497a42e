# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Subclasses of known layers: which of them compute what their base computes, and what they have beyond it."""

from __future__ import annotations

import inspect
from collections.abc import Container

from torch import nn

_CONSTRUCTION = {"__init__", "__new__", "__repr__", "extra_repr", "reset_parameters"}
"""Methods without a part in what a layer computes."""

_COMPUTING = ("forward", "_conv_forward", "__call__")


def known_base(module: nn.Module, known: Container[type]) -> type | None:
    """The class that a module is of, for all that it computes: one that it inherits every method from but for its
    construction, whatever it adds.

    >>> class Conv3x3(nn.Conv2d):
    ...     def __init__(self, channels: int) -> None:
    ...         super().__init__(channels, channels, 3, padding=1)
    >>> class Scaled(nn.Conv2d):
    ...     def forward(self, x):
    ...         return 2 * super().forward(x)
    >>> known_base(Conv3x3(8), {nn.Conv2d}), known_base(Scaled(8, 8, 1), {nn.Conv2d})
    (<class 'torch.nn.modules.conv.Conv2d'>, None)

    :param module: any module, such as a layer of a model.
    :param known: the classes to look for.
    :return: the nearest of them; None where there is none, or something that is computed with was changed.
    """
    classes = type(module).__mro__
    place = next((index for index, each in enumerate(classes) if each in known), None)
    if place is None or any(name in vars(module) for name in _COMPUTING):
        return None
    base = classes[place]
    changed = {name for each in classes[:place] for name, value in vars(each).items() if _matters(base, name, value)}
    added = {*module._parameters, *module._buffers, *module._modules} - {"weight", "bias"} if place else set()
    return None if changed or added else base


def _matters(base: type, name: str, value: object) -> bool:
    computes = (callable(value) or hasattr(value, "__get__")) and not name.startswith("__annotate")
    return computes and name not in _CONSTRUCTION and (hasattr(base, name) or name in _declared(base))


def _declared(base: type) -> set[str]:
    """The attributes that instances of a layer's class have."""
    return {name for each in base.__mro__ for name in inspect.get_annotations(each)}


def own_attributes(module: nn.Module, base: type) -> set[str]:
    """What a module has that its base and other modules have not: code that reads it needs the module as it is.

    :param module: an instance of a subclass of ``base``, or of itself.
    :param base: its base.
    """
    if type(module) is base:
        return set()
    between = type(module).__mro__[: type(module).__mro__.index(base)]
    added = {name for each in between for name in vars(each) if not hasattr(base, name)}
    return added | (vars(module).keys() - vars(nn.Module()).keys() - _declared(base))
