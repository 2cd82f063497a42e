# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Which modules of a model hold weights of their own, and under which names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
"""Where torch's layers are that keep their weight packed, out of reach as a parameter."""


def holders(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold a weight: a parameter, or a buffer called so, with at least two axes; or a packed one.

    Biases and the vectors of normalisations are no weights. What parametrisations hold is a weight of their module.

    >>> list(holders(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.GRU(4, 4))))
    ['0', '2']
    >>> list(holders(nn.MultiheadAttention(8, 2)))
    ['', 'out_proj']

    :param model: the network.
    :return: by the first of their names.
    """
    inner = {id(part) for module in model.modules() for part in _parametrisations(module)}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) not in inner and (own_weights(module) or is_packed(module))
    }


def own_weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights that a module holds itself, by their names in it; some may not be initialised yet.

    :param module: any module.
    """
    return {name: each for name, each in _own(module).items() if is_lazy(each) or each.dim() >= 2}


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of a layer; None where it has none, whatever else it keeps under that name.

    >>> bias_of(nn.Linear(3, 4)).shape, bias_of(nn.Linear(3, 4, bias=False))
    (torch.Size([4]), None)

    :param module: a layer, or a stage of a chain.
    """
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, Tensor) else None


def own_size(module: nn.Module) -> int:
    """How many numbers the weights and biases are that a module holds itself, as far as they are initialised.

    >>> own_size(nn.Sequential(nn.Linear(3, 4))), own_size(nn.Linear(3, 4))
    (0, 16)

    :param module: any module.
    """
    return sum(each.numel() for each in _own(module).values() if not is_lazy(each))


def parameters_of(model: nn.Module) -> int:
    """How many numbers the parameters of a whole model are, each counted once, as far as they are initialised.

    >>> parameters_of(nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2)))
    16

    :param model: the network.
    """
    return sum(each.numel() for each in model.parameters() if not is_lazy(each))


def is_packed(module: nn.Module) -> bool:
    """Whether a module is a layer of torch that was quantized, whose weight is packed for its kernel.

    :param module: any module.
    """
    inside = type(module).__module__.startswith(_QUANTIZED)
    return inside and (callable(getattr(module, "weight", None)) or hasattr(module, "_all_weight_values"))


def names_of(model: nn.Module) -> Mapping[str, tuple[str, ...]]:
    """All names that the model knows each of its modules by, by the first one.

    >>> first = nn.Linear(2, 2)
    >>> names_of(nn.ModuleDict({"a": first, "b": first}))
    {'': ('',), 'a': ('a', 'b')}

    :param model: the network.
    """
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(id(module), []).append(name)
    return {names[0]: tuple(names) for names in found.values()}


def _own(module: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    for part in _parametrisations(module):
        found.update(part.named_parameters())
    found.update((name, each) for name, each in module.named_buffers(recurse=False) if "weight" in name)
    return found


def _parametrisations(module: nn.Module) -> list[nn.Module]:
    parts = module._modules.get("parametrizations") if parametrize.is_parametrized(module) else None
    return [] if parts is None else list(parts.modules())
