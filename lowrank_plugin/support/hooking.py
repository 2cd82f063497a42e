# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Forward hooks that are gone when the work is done, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


@contextmanager
def hooked(hooks: Mapping[nn.Module, Callable[..., Any]], *, before: bool = False) -> Iterator[None]:
    """Run with a forward hook on some modules, called with the keyword arguments of the forward as well.

    The hooks stand nearest to the forward: they get what it really gets and what it really puts out, whatever the hooks
    of others change before and after.

    >>> import torch
    >>> layer, seen = nn.Linear(2, 3), []
    >>> with hooked({layer: lambda module, args, kwargs, output: seen.append(output.shape)}):
    ...     _ = layer(torch.ones(1, 2))
    >>> seen, len(layer._forward_hooks)
    ([torch.Size([1, 3])], 0)

    :param hooks: for each module its hook: ``hook(module, args, kwargs, output)``, or without the output where it is
        called ``before`` the forward. What it returns takes the place of the output (of the input), as torch has it.
    :param before: whether the hooks are called before the forward.
    :raises Exception: what a hook raises, as it is: no ``except`` on the way, of the model or around it, sees it.
    """
    with ExitStack() as handles:
        for module, hook in hooks.items():
            if before:
                handle = module.register_forward_pre_hook(_apart(hook), with_kwargs=True)
            else:
                handle = module.register_forward_hook(_apart(hook), with_kwargs=True, prepend=True)
            handles.callback(handle.remove)
        try:
            yield
        except _HookError as carrier:
            raise carrier.error from carrier.error.__cause__


class _HookError(BaseException):
    """Carries what a hook raised past everything that catches the errors of a model."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _apart(hook: Callable[..., Any]) -> Callable[..., Any]:
    def apart(*args: Any) -> Any:
        try:
            return hook(*args)
        except Exception as error:
            raise _HookError(error) from error

    return apart
