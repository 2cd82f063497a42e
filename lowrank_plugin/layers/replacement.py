# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Putting chains in the place of layers, and layers back in the place of chains."""

from __future__ import annotations

from torch import Tensor, nn

from lowrank_hooks import Factorization, LayerAdapter

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def make_chain(layer: nn.Module, adapter: LayerAdapter, factorization: Factorization, bias: Tensor | None) -> nn.Module:
    """Build the chain that takes a layer's place: its dtype, device, train flag, requires_grad and hooks.

    :param layer: the layer; it is not changed.
    :param adapter: its adapter.
    :param factorization: the factors, in any dtype.
    :param bias: the bias of the last stage, or None.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
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
        if name in old.__dict__:
            # the same dictionaries, so that the handles their owners hold can still remove the hooks
            setattr(new, name, getattr(old, name))
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
