# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What a model must be to be looked into: modules of Python that are initialised, not a graph made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import fx, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from lowrank_plugin.errors import CalibrationError, ConfigurationError


def check_eager(model: object) -> None:
    """Refuse what no layers can be replaced in.

    >>> check_eager(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)))
    Traceback (most recent call last):
        ...
    lowrank_plugin.errors.ConfigurationError: The model is an exported graph (torch.export), whose operators cannot be
    replaced. Pass the eager model, and export the compressed one.

    :param model: what the user passed as a model.
    :raises ConfigurationError: where it is no module, a script, or a graph of operators as ``torch.export`` makes them.
    """
    if isinstance(model, torch.jit.ScriptModule):
        what, instead = "a ScriptModule (torch.jit), whose layers", "script or trace"
    elif isinstance(model, torch.export.ExportedProgram) or _is_exported(model):
        what, instead = "an exported graph (torch.export), whose operators", "export"
    elif isinstance(model, nn.Module):
        return
    else:
        msg = f"Expected the model to be a torch.nn.Module, but it is of type {type(model).__name__}."
        raise ConfigurationError(msg)
    msg = f"The model is {what} cannot be replaced. Pass the eager model, and {instead} the compressed one."
    raise ConfigurationError(msg)


def _is_exported(model: object) -> bool:
    # a graph that was only traced calls modules, or functions of Python
    return isinstance(model, fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in model.graph.nodes
    )


@contextmanager
def check_initialised(model: nn.Module) -> Iterator[None]:
    """Refuse to run lazy modules that would create their parameters now: the model is the user's.

    >>> model = nn.Sequential(nn.LazyLinear(2))
    >>> with check_initialised(model):
    ...     model(torch.ones(1, 3))
    Traceback (most recent call last):
        ...
    lowrank_plugin.errors.CalibrationError: The model's '0' (LazyLinear) is not initialised: run the model once on an
    example first.

    :param model: the network, which is run meanwhile; lazy modules that are not called may stay as they are.
    :raises CalibrationError: where such a module is called; it is left as it was.
    """
    names = {module: name for name, module in model.named_modules() if _is_lazy(module)}

    def refuse(module: nn.Module, args: object) -> None:
        kind = type(module).__name__
        msg = f"The model's {names[module]!r} ({kind}) is not initialised: run the model once on an example first."
        raise CalibrationError(msg)

    with ExitStack() as handles:
        for module in names:
            # before torch's own hook, which creates the parameters
            handles.callback(module.register_forward_pre_hook(refuse, prepend=True).remove)
        yield


def _is_lazy(module: nn.Module) -> bool:
    held = [*module._parameters.values(), *module._buffers.values()]
    return isinstance(module, LazyModuleMixin) and any(each is not None and is_lazy(each) for each in held)
