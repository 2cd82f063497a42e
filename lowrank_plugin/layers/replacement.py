# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Putting chains in the place of layers, and layers back in the place of chains."""

from __future__ import annotations

import weakref

from torch import Tensor, nn

from lowrank_hooks import Factorization, LayerAdapter

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
    return hand_over(layer, chain, weight.requires_grad)


def hand_over(old: nn.Module, new: nn.Module, requires_grad: bool) -> nn.Module:
    """Give a new module the train flag and the hooks of the one it replaces.

    :param old: the module replaced.
    :param new: its replacement.
    :param requires_grad: for all of its parameters.
    """
    new.train(old.training)
    for parameter in new.parameters():
        parameter.requires_grad_(requires_grad)
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

    :param model: the network, changed in place.
    :param old: the module to be replaced; not the model itself.
    :param new: its replacement.
    """
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                setattr(parent, name, new)
