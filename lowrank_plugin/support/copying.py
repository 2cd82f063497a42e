# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A copy of a network, whatever it keeps on itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lowrank_plugin.errors import LowRankError

M = TypeVar("M", bound=nn.Module)


def copied(model: M) -> M:
    """Copy a model deeply. Activations that it keeps from a run lose their history, which torch does not copy.

    >>> model = nn.Linear(2, 2)
    >>> model.seen = model(torch.ones(1, 2))
    >>> copied(model).seen.requires_grad
    False

    :param model: the network; it is left as it was.
    :raises LowRankError: where something that it holds cannot be copied; names it.
    """
    with torch.inference_mode(False), _Detaching():
        try:
            return copy.deepcopy(model)
        except Exception as error:
            msg = (
                f"The model cannot be copied{_culprit(model)}: {type(error).__name__}: {error}. Give its class a "
                "__deepcopy__ that knows what to do, or inplace=True to have the model itself changed."
            )
            raise LowRankError(msg) from error


class _Detaching(TorchFunctionMode):
    """Copies tensors that autograd computed, without how."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def _culprit(model: nn.Module) -> str:
    """Which attribute of which module it is, as a phrase."""
    modules = {id(module): module for module in model.modules()}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            try:
                copy.deepcopy(value, dict(modules))
            except Exception:  # noqa: BLE001 - which one it is was said already
                return f" because of its attribute {f'{name}.{attribute}'.lstrip('.')!r}"
    return ""
