# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What of a model can be compressed, and for every other layer the reason why not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from lowrank_hooks import KernelShape, LayerAdapter, StageShape
from lowrank_plugin.layers.kinds import Adapters, by_type
from lowrank_plugin.layers.reads import watching
from lowrank_plugin.layers.scopes import check_scopes, matches
from lowrank_plugin.layers.subclasses import known_base
from lowrank_plugin.settings import Settings
from lowrank_plugin.support.batches import batch_size, call, evaluating
from lowrank_plugin.support.hooking import hooked

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layer:
    """A layer that can be compressed.

    :param name: its dotted module name.
    :param kind: the name of its adapter, such as ``"Conv2d"``.
    :param adapter: how it is seen as a kernel.
    :param shape: the sizes of its kernel.
    :param calls: shapes of its input and output at every call in the example run.
    """

    name: str
    kind: str
    adapter: LayerAdapter
    shape: KernelShape
    calls: tuple[tuple[torch.Size, torch.Size], ...]

    def positions(self, module: nn.Module, stages: tuple[StageShape, ...]) -> tuple[int, ...]:
        """Output positions that each stage of a chain computes in the example run.

        :param module: the layer itself.
        :param stages: the sizes of the chain.
        """
        counts = [
            self.adapter.positions(
                module, stages, torch.empty(before, device="meta"), torch.empty(after, device="meta")
            )
            for before, after in self.calls
        ]
        return tuple(sum(each) for each in zip(*counts, strict=True))


@dataclass(frozen=True)
class Survey:
    """The outcome of a survey.

    :param layers: the compressible layers by name, in the order of their first call.
    :param refusals: for every other layer with a weight, the reason.
    :param macs: multiply-accumulates of the whole model for one sample.
    :param parameters: parameters of the whole model.
    :param samples: batch size of the example.
    """

    layers: Mapping[str, Layer]
    refusals: Mapping[str, str]
    macs: float
    parameters: int
    samples: int


def survey(model: nn.Module, example: object, settings: Settings, adapters: Adapters) -> Survey:
    """Run the model once and look at every layer that has a weight.

    >>> from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
    >>> adapters = manager().registered(LAYER_ADAPTERS)
    >>> found = survey(model, torch.zeros(1, 3, 8, 8), Settings(budget={"macs": 0.5}), adapters)
    >>> list(found.layers), list(found.refusals), found.macs
    (['0'], ['1'], 8928.0)

    :param model: the network; it is left as it was.
    :param example: an input for it, any nesting of tuples, lists and dicts.
    :param settings: for the scopes.
    :param adapters: the layer adapters by name.
    :raises CalibrationError: where the model cannot take the example.
    :raises ConfigurationError: where a scope or a pattern of ranks matches no layer.
    """
    types = by_type(adapters)
    candidates = {name: module for name, module in model.named_modules() if _has_weight(module)}
    for key in ("target_scopes", "ignored_scopes", "ranks"):
        check_scopes(getattr(settings, key) or (), candidates, key)
    sharing = _shared_weights(candidates)
    known = _known(candidates, types)
    calls, readers, macs = _example_run(model, example, known)
    layers, refusals = {}, {}
    for name in sorted(candidates, key=lambda name: list(calls).index(name) if name in calls else len(calls)):
        module = candidates[name]
        _, base = known.get(name, (module, None))
        reason = _refusal(name, module, base, types, settings) or sharing.get(name)
        if reason is None and name in readers:
            reason = f"its attribute {readers[name]!r} is read outside of its own forward, which a chain does not have"
        if reason is None and name not in calls:
            reason = "its forward was not called in the example run"
        if reason is not None:
            refusals[name] = reason
            continue
        layers[name] = _layer(name, *known[name], types, calls[name])
    logger.info("%d of %d layers with a weight can be compressed.", len(layers), len(candidates))
    for name, reason in refusals.items():
        logger.debug("Layer %s cannot be compressed: %s.", name, reason)
    samples = batch_size(example)
    return Survey(layers, refusals, macs / samples, sum(p.numel() for p in model.parameters()), samples)


def called_layers(
    model: nn.Module, example: object, modules: Mapping[str, nn.Module], adapters: Adapters
) -> dict[str, Layer]:
    """Those of some modules that an example run calls and that have an adapter, whether they can be compressed or not.

    >>> from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
    >>> model, adapters = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()), manager().registered(LAYER_ADAPTERS)
    >>> called_layers(model, torch.zeros(1, 8, 5, 5), dict(model.named_children()), adapters)["0"].shape
    KernelShape(groups=8, out_channels=1, in_channels=1, kernel_size=(3, 3))

    :param model: the network; it is left as it was.
    :param example: an input for it, any nesting of tuples, lists and dicts.
    :param modules: modules of it by name.
    :param adapters: the layer adapters by name.
    :raises CalibrationError: where the model cannot take the example.
    """
    types = by_type(adapters)
    known = _known(modules, types)
    calls, _, _ = _example_run(model, example, known)
    return {name: _layer(name, *known[name], types, each) for name, each in calls.items()}


def _known(modules: Mapping[str, nn.Module], types: Mapping[type, object]) -> dict[str, tuple[nn.Module, type]]:
    """Those that have an adapter, each with the class it was made for."""
    bases = {name: known_base(module, types) for name, module in modules.items()}
    return {name: (modules[name], base) for name, base in bases.items() if base is not None}


def _layer(
    name: str,
    module: nn.Module,
    base: type,
    types: Mapping[type, tuple[str, LayerAdapter]],
    calls: Sequence[tuple[torch.Size, torch.Size]],
) -> Layer:
    kind, adapter = types[base]
    groups, out, inputs, *kernel = adapter.kernel(module).shape
    return Layer(name, kind, adapter, KernelShape(groups, out, inputs, tuple(kernel)), tuple(calls))


def _has_weight(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return False
    if parametrize.is_parametrized(module):
        return True
    weight = module._parameters.get("weight")
    return weight is not None and (isinstance(weight, nn.parameter.UninitializedParameter) or weight.dim() >= 2)


def _refusal(
    name: str,
    module: nn.Module,
    base: type | None,
    types: Mapping[type, tuple[str, LayerAdapter]],
    settings: Settings,
) -> str | None:
    if settings.target_scopes is not None and not any(matches(name, scope) for scope in settings.target_scopes):
        return "not in the target scopes"
    if any(matches(name, scope) for scope in settings.ignored_scopes):
        return "in the ignored scopes"
    if parametrize.is_parametrized(module):
        return "its weight is parametrised; remove the parametrisations first"
    if base is None:
        return _unknown(module, types)
    weight = module._parameters["weight"]
    if not isinstance(weight, Tensor) or isinstance(weight, nn.parameter.UninitializedParameter) or weight.is_meta:
        return "its weight is not initialised"
    if not weight.is_floating_point() or weight.layout is not torch.strided:
        return f"its weight is not a dense floating-point tensor ({weight.dtype}, {weight.layout})"
    if not bool(torch.isfinite(weight).all()):
        return "its weight contains NaN or infinity"
    return types[base][1].refusal(module)


def _unknown(module: nn.Module, types: Mapping[type, object]) -> str:
    kind = type(module).__name__
    if type(module) in types:
        return "its forward was replaced by another function"
    base = next((known.__name__ for known in types if isinstance(module, known)), None)
    return f"{kind} is a subclass of {base} that may compute something else" if base else f"no layer adapter for {kind}"


def _shared_weights(candidates: Mapping[str, nn.Module]) -> dict[str, str]:
    owners: dict[int, list[str]] = {}
    for name, module in candidates.items():
        weight = module._parameters.get("weight")
        if (
            isinstance(weight, Tensor)
            and not isinstance(weight, nn.parameter.UninitializedParameter)
            and not weight.is_meta
        ):
            owners.setdefault(weight.untyped_storage().data_ptr(), []).append(name)
    return {
        name: "its weight is shared with " + ", ".join(other for other in names if other != name)
        for names in owners.values()
        for name in names
        if len(names) > 1
    }


def _example_run(
    model: nn.Module, example: object, candidates: Mapping[str, tuple[nn.Module, type]]
) -> tuple[dict[str, list[tuple[torch.Size, torch.Size]]], dict[str, str], float]:
    """Shapes at every call of each candidate, the attributes read from outside, and the MACs of the whole run."""
    calls: dict[str, list[tuple[torch.Size, torch.Size]]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
            inputs = layer_input(args, kwargs)
            if isinstance(inputs, Tensor) and isinstance(output, Tensor):
                calls.setdefault(name, []).append((inputs.shape, output.shape))

        return hook

    counter = FlopCounterMode(display=False)
    hooks = {module: record(name) for name, (module, _) in candidates.items()}
    with hooked(hooks), evaluating(model), watching(candidates) as readers, counter:
        call(model, example)
    return calls, readers, counter.get_total_flops() / 2


def layer_input(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Any:
    """The input tensor of a layer from the arguments of its forward."""
    return args[0] if args else kwargs.get("input")
