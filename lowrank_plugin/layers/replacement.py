# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Putting chains in the place of layers, and layers back in the place of chains."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lowrank_hooks import Factorization, LayerAdapter
from lowrank_plugin.support.keeping import STRUCTURE

_HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)
"""Where torch keeps a module's hooks, and of which kind its backward hooks are."""


def make_chain(layer: nn.Module, adapter: LayerAdapter, factorization: Factorization, bias: Tensor | None) -> nn.Module:
    """Build the chain that takes a layer's place: its dtype, device, train flag, requires_grad and hooks.

    >>> import torch
    >>> from lowrank_hooks import Stage
    >>> from lowrank_plugin.layers.adapters import LinearAdapter
    >>> factors = Factorization((Stage(torch.ones(1, 2, 8)), Stage(torch.ones(1, 4, 2))))
    >>> [stage.weight.shape for stage in make_chain(nn.Linear(8, 4), LinearAdapter(), factors, None)]
    [torch.Size([2, 8]), torch.Size([4, 2])]

    :param layer: the layer; it is not changed, but shares its hooks with the chain.
    :param adapter: that of the layer's kind, which builds the chain.
    :param factorization: the factors, in any dtype.
    :param bias: of the last stage [G*T], in any dtype; None for none.
    """
    weight = layer.get_parameter("weight")
    chain = adapter.build(
        layer, factorization.map(lambda factor: factor.to(weight)), None if bias is None else bias.to(weight)
    )
    return hand_over(layer, chain)


def hand_over(old: nn.Module, new: nn.Module) -> nn.Module:
    """Give a new module the train flag, the requires_grad and the hooks of the one it replaces.

    :param old: the module replaced, a layer or a chain; weights and biases may be frozen by themselves.
    :param new: its replacement; a bias that the old one had not is as its weights are.
    """
    new.train(old.training)
    flags = {name.rpartition(".")[2]: each.requires_grad for name, each in old.named_parameters()}
    weights = flags.get("weight", next(iter(flags.values())))
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(flags.get(name.rpartition(".")[2], weights))
    for name in _HOOKS:
        if name in vars(old):
            # the same dictionaries, so that the handles their owners hold can still remove the hooks
            setattr(new, name, getattr(old, name))
    for hook in new._load_state_dict_pre_hooks.values():
        # torch calls these with the module that they were registered on, which must not be one that is gone
        if getattr(hook, "with_module", False):
            vars(hook)["module"] = weakref.ref(new)
    return new


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, under every name the model knows it by.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> model.steps = [model[0], model[1].forward]
    >>> replace(model, model[0], nn.Identity())
    >>> model[0], model.steps[0]
    (Identity(), Identity())

    :param model: the network, changed in place.
    :param old: the module to be replaced; not the model itself.
    :param new: its replacement.
    """
    exchange(model, {old: new})


def exchange(model: nn.Module, news: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in the places of others: as submodules, and where a module holds them in an attribute of its own.

    Those in lists, tuples, dicts and sets are found, however nested; what functions and other objects hold is not.

    :param model: the network, changed in place.
    :param news: for each module to be replaced its replacement; not the model itself.
    """
    by_id: dict[int, Any] = {id(old): new for old, new in news.items()}
    seen: dict[int, tuple[Any, Any]] = {}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in by_id:
                setattr(parent, name, by_id[id(child)])
        attributes = vars(parent)
        for name in [name for name in attributes if name not in STRUCTURE]:
            attributes[name] = _exchanged(attributes[name], by_id, seen)


def _exchanged(value: Any, news: Mapping[int, Any], seen: dict[int, tuple[Any, Any]]) -> Any:
    """A value with other modules in it: lists, dicts and sets are changed, tuples and frozen sets are made anew.

    :param value: any.
    :param news: replacements by the id of what they replace.
    :param seen: containers that were looked at, by id: themselves, so that no id is given twice, and what they became.
    """
    if id(value) in news:
        return news[id(value)]
    if not isinstance(value, list | tuple | dict | set | frozenset | deque):
        return value
    if id(value) in seen:
        return seen[id(value)][1]
    seen[id(value)] = value, value
    items = list(value.items()) if isinstance(value, dict) else list(value)
    changed = [_exchanged(each, news, seen) for each in items]
    if all(mine is theirs for mine, theirs in zip(items, changed, strict=True)):
        return value
    if isinstance(value, tuple):
        made = value._make(changed) if hasattr(value, "_make") else type(value)(changed)
    elif isinstance(value, frozenset):
        made = frozenset(changed)
    else:
        made = value
        value.clear()
        value.extend(changed) if isinstance(value, list | deque) else value.update(changed)
    seen[id(value)] = value, made
    return made
