# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Nothing of the user's is changed: what runs of a model leave behind on it, and in the process, is undone."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

STRUCTURE = frozenset(vars(nn.Module()))
"""What torch itself keeps on every module: parameters, buffers, submodules, hooks and the train flag."""

_CONTAINERS = (list, dict, set, deque)
_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
_DEVICES = ("cpu", "cuda", "xpu", "mps")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Work as if nobody had set anything: outside inference mode and autocast; random generators go on as before.

    >>> with torch.inference_mode(), undisturbed():
    ...     torch.ones(1).is_inference()
    False
    """
    numpy = sys.modules.get("numpy")
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        if numpy is not None:
            stack.callback(numpy.random.set_state, numpy.random.get_state())
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        stack.enter_context(torch.inference_mode(False))
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Run a model and have it carry afterwards what it carried before: attributes, buffers, entries of lists and dicts.

    >>> model = nn.BatchNorm1d(2)
    >>> with kept(model):
    ...     _ = model(torch.ones(4, 2))
    >>> model.running_mean, int(model.num_batches_tracked)
    (tensor([0., 0.]), 0)

    :param model: the network. Its parameters are not looked at: a forward does not change them.
    """
    # what a script carries is not in Python's reach
    saved = [_Carried(module) for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    try:
        yield
    finally:
        for each in saved:
            each.put_back()


class _Carried:
    """What one module carries beside its parameters and submodules.

    :param module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, self._kind = module, type(module)
        self._attributes = {name: value for name, value in vars(module).items() if name not in STRUCTURE}
        self._buffers = dict(module._buffers)
        found = list(_inside([self._attributes, self._buffers]))
        self._contents = [(each, each.copy()) for each in found if isinstance(each, _CONTAINERS)]
        self._values = [
            (each, each.detach().clone()) for each in found if isinstance(each, Tensor) and _has_values(each)
        ]

    def put_back(self) -> None:
        """Make the module carry it again."""
        if type(self._module) is not self._kind:
            return  # it was lazy: there is no way back
        attributes = vars(self._module)
        for name in [name for name in attributes if name not in STRUCTURE and name not in self._attributes]:
            del attributes[name]
        attributes.update(self._attributes)
        _refill(self._module._buffers, self._buffers)
        for container, contents in self._contents:
            _refill(container, contents)
        for tensor, values in self._values:
            if not torch.equal(tensor, values):
                with torch.inference_mode(tensor.is_inference()):
                    tensor.detach().copy_(values)


def _has_values(tensor: Tensor) -> bool:
    return not (tensor.is_meta or nn.parameter.is_lazy(tensor)) and tensor.layout is torch.strided


def _inside(values: Any) -> Iterator[Any]:
    """Whatever is in a container, containers in it and what is in these."""
    seen: dict[int, Any] = {}
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        if isinstance(value, (*_CONTAINERS, tuple, Tensor)):
            seen[id(value)] = value
            yield value
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, (*_CONTAINERS, tuple)):
            waiting.extend(value)


def _refill(container: Any, contents: Any) -> None:
    """Give a container the very entries of a copy of it; one that has them is left alone."""
    if len(container) == len(contents):
        mine = container.items() if isinstance(container, dict) else container
        theirs = contents.items() if isinstance(contents, dict) else contents
        if isinstance(container, dict):
            same = all(a is c and b is d for (a, b), (c, d) in zip(mine, theirs, strict=True))
        else:
            same = all(a is b for a, b in zip(mine, theirs, strict=True))
        if same:
            return
    container.clear()
    container.extend(contents) if isinstance(container, list | deque) else container.update(contents)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Have no gradient reach what a model holds, and none of its backward hooks hear of those that are sent.

    >>> layer = nn.Linear(2, 1)
    >>> with frozen(layer):
    ...     layer(torch.ones(1, 2)).requires_grad
    False
    >>> layer.weight.requires_grad
    True

    :param model: the network. Its flags are switched off and on again, its tensors stay the very same: modules that it
        knows under several names, and parameters that modules share, need no care.
    """
    modules = list(model.modules())
    tensors = [each for module in modules for each in _inside(vars(module).values()) if isinstance(each, Tensor)]
    tensors = [each for each in tensors if not nn.parameter.is_lazy(each)]
    learned = {id(each): each for each in tensors if each.is_leaf and each.requires_grad}.values()
    hooks = [(module, name, vars(module)[name]) for module in modules for name in _BACKWARD_HOOKS]
    try:
        for tensor in learned:
            tensor.requires_grad_(False)
        for module, name, _ in hooks:
            vars(module)[name] = OrderedDict()
        yield
    finally:
        for tensor in learned:
            tensor.requires_grad_(True)
        for module, name, each in hooks:
            vars(module)[name] = each
