# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""NNCF's hooks in a model: found, refused where they would be lost, and pruning masks baked into the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar, overload

import torch
from nncf.torch.function_hook import get_hook_storage, is_wrapped
from nncf.torch.function_hook.hook_storage import HookStorage, decode_hook_name
from nncf.torch.function_hook.pruning.magnitude.modules import UnstructuredPruningMask
from nncf.torch.function_hook.pruning.rb.modules import RBPruningMask
from torch import nn

from lowrank_nncf.errors import ConfigurationError, ModelError
from lowrank_plugin.host import suggestion

Hook = TypeVar("Hook", bound=nn.Module)

MASKS = (UnstructuredPruningMask, RBPruningMask)
"""The modules with which NNCF 3 prunes."""


@overload
def hooks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]: ...
@overload
def hooks(model: nn.Module, kinds: tuple[type[Hook], ...]) -> Iterator[tuple[str, Hook]]: ...
def hooks(model: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Module,)) -> Iterator[tuple[str, nn.Module]]:
    """All hooks that NNCF has put into a model, under the names NNCF gives them.

    :param model: any model.
    :param kinds: the classes of the hooks that are wanted.
    """
    for storage in model.modules():
        if isinstance(storage, HookStorage):
            yield from ((name, hook) for name, hook in storage.named_hooks() if isinstance(hook, kinds))


def check_free_of_hooks(model: nn.Module) -> None:
    """Refuse a model with live hooks.

    :param model: the model that is to be compressed or restored.
    :raises ModelError: where it has some; says how to go on.
    """
    if next(hooks(model), None) is None:
        return
    msg = (
        "The model already carries NNCF's hooks, which would silently lose the layers that are replaced. If it is "
        "quantized, start from the model before nncf.quantize and add the section 'quantization'. If it is pruned, "
        'add "bake_pruning": true to the config: the masks are then multiplied into the weights first.'
    )
    raise ModelError(msg)


def check_can_be_wrapped(model: nn.Module, algorithm: str) -> None:
    """Refuse a model that would call NNCF's hooks as if they were layers of its own.

    :param model: the model that hooks are to be put into.
    :param algorithm: the section of the config that needs them.
    :raises ConfigurationError: where its forward is that of nn.Sequential.
    """
    if type(model).forward is nn.Sequential.forward:
        msg = (
            f"{algorithm!r} cannot be applied to a model that is itself an nn.Sequential: NNCF 3 stores its hooks as "
            "one more child, which the nn.Sequential would call. Put it into a module of your own whose forward calls "
            "it."
        )
        raise ConfigurationError(msg)


@torch.no_grad()
def bake_pruning(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Multiply pruning masks into the weights, which are then ordinary weights with zeros in them.

    NNCF keeps masks beside the weights, so that a layer's ``weight`` is the one before pruning; whatever replaces the
    layer would bring the pruned weights back. ``nncf.strip`` with the format ``IN_PLACE`` does the same as this, but
    needs the package torchao and leaves the weights frozen.

    >>> import nncf
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.Linear(8, 8)
    ...     def forward(self, x):
    ...         return self.layer(x)
    >>> mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL
    >>> pruned = nncf.prune(Net(), mode, ratio=0.75, examples_inputs=torch.ones(1, 8))
    >>> pruned.layer.weight.count_nonzero(), bake_pruning(pruned).layer.weight.count_nonzero()
    (tensor(64), tensor(16))

    :param model: a model that ``nncf.prune`` has pruned, or any other.
    :param inplace: change the model itself.
    :return: a copy without masks, and without traces of NNCF where no other hooks are left.
    :raises ModelError: where a mask belongs to a parameter that the model no longer has.
    """
    baked = model if inplace else copy.deepcopy(model)
    wrapped = [module for module in baked.modules() if is_wrapped(module)]
    masks = [(part, name, mask, _pruned_parameter(part, name)) for part in wrapped for name, mask in _masks(part)]
    for part, name, mask, parameter in masks:
        parameter.data = mask.eval()(parameter.data).contiguous()
        get_hook_storage(part).delete_hook(name)
    for part in wrapped:
        if get_hook_storage(part).is_empty():
            _unwrap(part)
    return baked


def _masks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, hook) for name, hook in get_hook_storage(model).named_hooks() if isinstance(hook, MASKS)]


def _pruned_parameter(model: nn.Module, hook_name: str) -> nn.Parameter:
    _, name, _ = decode_hook_name(hook_name)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if name not in parameters:
        msg = (
            f"The model carries a pruning mask for {name!r} but no longer has that parameter. "
            f"{suggestion(name, parameters)}The layer was replaced after it had been pruned, so the mask "
            "is lost. Start from the pruned model."
        )
        raise ModelError(msg)
    return parameters[name]


def _unwrap(model: nn.Module) -> None:
    """Undo nncf.torch.wrap_model on a model without hooks."""
    forward = model.forward.orig_forward  # type: ignore[attr-defined]
    del model.forward, model._replicate_for_data_parallel
    if model.forward != forward:  # the model had a forward of its own before it was wrapped
        model.forward = forward
    for name, child in list(model.named_children()):
        if isinstance(child, HookStorage):
            delattr(model, name)
