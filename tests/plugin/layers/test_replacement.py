# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What a chain takes over from the layer whose place it takes."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from lowrank_hooks import Factorization, Stage
from lowrank_plugin.layers.adapters import LinearAdapter
from lowrank_plugin.layers.replacement import make_chain, replace

HOOKS = {
    "forward": lambda layer, seen: layer.register_forward_hook(lambda m, a, o: seen("forward")),
    "forward_kwargs": lambda layer, seen: layer.register_forward_hook(
        lambda m, a, k, o: seen("forward_kwargs"), with_kwargs=True
    ),
    "forward_always": lambda layer, seen: layer.register_forward_hook(
        lambda m, a, o: seen("forward_always"), always_call=True
    ),
    "forward_pre": lambda layer, seen: layer.register_forward_pre_hook(lambda m, a: seen("forward_pre")),
    "forward_pre_kwargs": lambda layer, seen: layer.register_forward_pre_hook(
        lambda m, a, k: seen("forward_pre_kwargs"), with_kwargs=True
    ),
    "backward": lambda layer, seen: layer.register_full_backward_hook(lambda m, i, o: seen("backward")),
    "backward_pre": lambda layer, seen: layer.register_full_backward_pre_hook(lambda m, o: seen("backward_pre")),
    "state": lambda layer, seen: layer.register_state_dict_post_hook(lambda m, *rest: seen("state")),
    "state_pre": lambda layer, seen: layer.register_state_dict_pre_hook(lambda m, *rest: seen("state_pre")),
    "load_pre": lambda layer, seen: layer.register_load_state_dict_pre_hook(lambda m, *rest: seen("load_pre")),
    "load_post": lambda layer, seen: layer.register_load_state_dict_post_hook(lambda m, keys: seen("load_post")),
}


def compressed(register):
    """A model whose layer was replaced by a chain and is gone, with hooks that were put on the layer."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    called: list[str] = []
    handle = register(model[0], called.append)
    factors = Factorization((Stage(torch.eye(3)[None]), Stage(model[0].weight.detach()[None])))
    replace(model, model[0], make_chain(model[0], LinearAdapter(), factors, None))
    gc.collect()
    return model, handle, called


def exercised(model):
    model(torch.ones(4, 3, requires_grad=True)).sum().backward()
    model.load_state_dict(model.state_dict())


@pytest.mark.parametrize("kind", HOOKS)
def test_every_kind_of_hook_stays_and_can_still_be_removed(kind):
    model, handle, called = compressed(HOOKS[kind])
    exercised(model)
    assert called == [kind]
    handle.remove()
    exercised(model)
    assert called == [kind]


def test_hooks_that_want_a_module_get_the_chain():
    seen = []
    model, _, _ = compressed(lambda layer, _: layer.register_load_state_dict_pre_hook(lambda m, *rest: seen.append(m)))
    exercised(model)
    assert seen == [model[0]]


def test_flags_are_the_layers():
    layer = nn.Linear(3, 2).eval().half().requires_grad_(False)
    factors = Factorization((Stage(torch.eye(3)[None]), Stage(layer.weight.detach()[None].float())))
    chain = make_chain(layer, LinearAdapter(), factors, layer.bias)
    assert not any(module.training for module in chain.modules())
    assert {(each.dtype, each.requires_grad) for each in chain.parameters()} == {(torch.float16, False)}
