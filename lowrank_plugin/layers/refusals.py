# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Why a layer is not compressed, as a phrase that is true."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lowrank_hooks import LayerAdapter
from lowrank_plugin.layers.holders import is_packed, own_weights
from lowrank_plugin.layers.scopes import matches
from lowrank_plugin.settings import Settings
from lowrank_plugin.support.messages import listed

_UNDONE = {
    "WeightNorm": "torch.nn.utils.remove_weight_norm",
    "SpectralNorm": "torch.nn.utils.remove_spectral_norm",
    "BasePruningMethod": "torch.nn.utils.prune.remove",
}
"""What makes the weight a parameter again that a hook of torch computes before each forward, by the hook's class."""


def out_of_scope(names: Iterable[str], settings: Settings) -> str | None:
    """Why the user does not want a module compressed; None where that is not so.

    >>> out_of_scope(["body.0", "first"], Settings(ignored_scopes=("first",)))
    'in the ignored scopes'

    :param names: all of its names.
    :param settings: for the scopes.
    """

    def within(scopes: Iterable[str]) -> bool:
        return any(matches(name, scope) for name in names for scope in scopes)

    if settings.target_scopes is not None and not within(settings.target_scopes):
        return "not in the target scopes"
    return "in the ignored scopes" if within(settings.ignored_scopes) else None


def locked(module: nn.Module) -> str | None:
    """Why the weights of a module are not its to give up, whatever class it is of; None where they are.

    >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    >>> locked(layer), locked(nn.Linear(2, 2))
    ('its weight is parametrised; remove the parametrisations first', None)

    :param module: any module.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a ScriptModule; compress the eager model and script or trace the compressed one"
    if is_packed(module):
        return "its weight was quantized and packed; compress first and quantize afterwards"
    if parametrize.is_parametrized(module):
        return "its weight is parametrised; remove the parametrisations first"
    if any(is_lazy(each) for each in own_weights(module).values()):
        return "its weight is not initialised"
    for hook in module._forward_pre_hooks.values():
        for kind in type(hook).__mro__:
            if kind.__module__.startswith("torch.nn.utils.") and kind.__name__ in _UNDONE:
                return f"its weight is computed by a hook before each forward; undo that by {_UNDONE[kind.__name__]}"
    return None


def unfit(module: nn.Module, adapter: LayerAdapter) -> str | None:
    """Why a layer of a known class cannot be factorised; None where it can.

    >>> from lowrank_plugin.layers.adapters import LinearAdapter
    >>> unfit(nn.Linear(2, 2).bfloat16(), LinearAdapter()), unfit(nn.Linear(2, 2).to("meta"), LinearAdapter())
    (None, 'its weight is not initialised')

    :param module: the layer.
    :param adapter: that of its class.
    """
    weight = module._parameters.get("weight")
    if not isinstance(weight, Tensor):
        return "its weight is not a parameter"
    if weight.is_meta:
        return "its weight is not initialised"
    if not weight.is_floating_point() or weight.layout is not torch.strided:
        return f"its weight is not a dense floating-point tensor ({weight.dtype}, {weight.layout})"
    if not bool(torch.isfinite(weight).all()):
        return "its weight contains NaN or infinity"
    return adapter.refusal(module) or (None if bool(weight.any()) else "its weight is all zeros")


def of_another_class(module: nn.Module, known: Iterable[type]) -> str:
    """Why a module that no adapter is for cannot be compressed.

    >>> of_another_class(nn.GRU(2, 2), [nn.Linear])
    'no layer adapter for GRU'
    >>> of_another_class(nn.MultiheadAttention(8, 2), [nn.Linear])
    "no layer adapter for MultiheadAttention, which holds 'in_proj_weight' itself"

    :param module: a module that holds a weight.
    :param known: the classes that adapters are for.
    """
    kind = type(module)
    if kind in known:
        return "its forward was replaced by another function"
    base = next((each for each in known if isinstance(module, each)), None)
    if base is not None:
        return f"{_path(kind)} is a subclass of {_path(base)} that may compute something else"
    inside = f", which holds {listed(own_weights(module))} itself" if module._modules else ""
    return f"no layer adapter for {kind.__name__}{inside}"


def adapters_around(model: nn.Module) -> dict[str, str]:
    """Layers that belong to an adapter that is trained and merged later, as those of the library PEFT, with the reason.

    Such an adapter names the attributes that its own weights are in, and merging reads all weights inside of it.

    :param model: the network.
    :return: the reasons by the names of all modules inside of one.
    """
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(getattr(module, "adapter_layer_names", None), tuple):
            reason = (
                f"it is inside of the adapter {type(module).__name__}; merge adapters first, or add them afterwards"
            )
            found.update((f"{name}.{inner}".lstrip("."), reason) for inner, _ in module.named_modules() if inner)
            found.setdefault(name, reason)
    return found


def shared(holding: Mapping[str, nn.Module]) -> dict[str, str]:
    """Modules that share a weight with another, with the reason.

    :param holding: the modules that hold weights, by name.
    """
    owners: dict[int, dict[str, None]] = {}
    for name, module in holding.items():
        for weight in own_weights(module).values():
            if not is_lazy(weight) and not weight.is_meta and weight.layout is torch.strided and weight.numel():
                owners.setdefault(weight.untyped_storage().data_ptr(), {})[name] = None
    return {
        name: "its weight is shared with " + ", ".join(other or "the model itself" for other in names if other != name)
        for names in owners.values()
        for name in names
        if len(names) > 1
    }


def _path(kind: type[Any]) -> str:
    """Where users import a class from, such as ``torch.nn.Linear``."""
    public = getattr(nn, kind.__name__, None) is kind
    return f"torch.nn.{kind.__name__}" if public else f"{kind.__module__}.{kind.__qualname__}"
