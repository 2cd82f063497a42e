# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What of a model can be compressed, and for every other layer the reason why not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from lowrank_hooks import KernelShape, LayerAdapter, StageShape
from lowrank_plugin.data.batches import batch_size, call, evaluating
from lowrank_plugin.layers.counting import counting
from lowrank_plugin.layers.eager import check_eager, check_initialised
from lowrank_plugin.layers.holders import holders, names_of, parameters_of
from lowrank_plugin.layers.kinds import Adapters, by_type
from lowrank_plugin.layers.prepared import PlainAdapter, Trial, tried_out
from lowrank_plugin.layers.reads import Seen, layer_input, watching
from lowrank_plugin.layers.refusals import adapters_around, locked, of_another_class, out_of_scope, shared, unfit
from lowrank_plugin.layers.scopes import check_scopes
from lowrank_plugin.layers.subclasses import known_base
from lowrank_plugin.settings import Settings

logger = logging.getLogger(__name__)

__all__ = ["Layer", "Survey", "called_layers", "layer_input", "survey"]


@dataclass(frozen=True)
class Layer:
    """A layer that can be compressed.

    :param name: its dotted module name.
    :param kind: the name of its adapter, such as ``"Conv2d"``.
    :param adapter: how it is seen as a kernel.
    :param shape: the sizes of its kernel.
    :param calls: shapes of its input and output at every call in the example run.
    :param aliases: the other names that the model knows it by.
    """

    name: str
    kind: str
    adapter: LayerAdapter
    shape: KernelShape
    calls: tuple[tuple[torch.Size, torch.Size], ...]
    aliases: tuple[str, ...] = ()

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
    :param refusals: the reason for every other module that holds a weight: a parameter of two or more axes, whether
        it is a layer or not. A reason of the model's own parameters is under the empty name.
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
    """Run the model once and look at every module that holds a weight.

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
    :raises CalibrationError: where the model cannot take the example, or runs modules that are not initialised yet.
    :raises ConfigurationError: where a scope or a pattern of ranks matches no layer, or the model is a graph that was
        made for deployment.
    """
    check_eager(model)
    types, names, candidates = by_type(adapters), names_of(model), holders(model)
    for key in ("target_scopes", "ignored_scopes", "ranks"):
        check_scopes(getattr(settings, key) or (), [each for name in candidates for each in names[name]], key)
    known = _known(candidates, types)
    trials = _trials(model, example, {name: each for name, each in candidates.items() if name not in known}, types)
    plain = {name: trial.plain for name, trial in trials.items() if trial.plain is not None}
    known |= {name: (candidates[name], type(each.layer)) for name, each in plain.items()}
    seen, macs = _example_run(model, example, known)
    order = {name: place for place, name in enumerate(seen.calls)}
    reasons = _reasons(model, candidates, known, types, seen, settings, trials)
    layers, refusals = {}, {}
    for name in sorted(candidates, key=lambda name: order.get(name, len(order))):
        if (reason := reasons[name]) is None:
            layer = _layer(name, *known[name], types, seen.calls[name], names[name][1:])
            layers[name] = replace(layer, adapter=PlainAdapter(layer.adapter, plain[name])) if name in plain else layer
        else:
            refusals[name] = reason
    logger.info("%d of %d layers with a weight can be compressed.", len(layers), len(candidates))
    for name, reason in refusals.items():
        logger.debug("Layer %s cannot be compressed: %s.", name, reason)
    samples = batch_size(example)
    return Survey(layers, refusals, macs / samples, parameters_of(model), samples)


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
    seen, _ = _example_run(model, example, known)
    return {name: _layer(name, *known[name], types, each) for name, each in seen.calls.items()}


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
    aliases: tuple[str, ...] = (),
) -> Layer:
    kind, adapter = types[base]
    groups, out, inputs, *kernel = adapter.kernel(module).shape
    return Layer(name, kind, adapter, KernelShape(groups, out, inputs, tuple(kernel)), tuple(calls), aliases)


def _reasons(
    model: nn.Module,
    candidates: Mapping[str, nn.Module],
    known: Mapping[str, tuple[nn.Module, type]],
    types: Mapping[type, tuple[str, LayerAdapter]],
    seen: Seen,
    settings: Settings,
    trials: Mapping[str, Trial],
) -> dict[str, str | None]:
    """Why each module is not compressed; None for those that can be."""
    names, around, sharing = names_of(model), adapters_around(model), shared(candidates)

    def reason(name: str, module: nn.Module) -> str | None:
        found = out_of_scope(names[name], settings) or locked(module) or around.get(name)
        tried = trials[name].reason if name in trials else None
        if found is None and name not in known:
            return tried or of_another_class(module, types)
        found = found or tried or unfit(module, types[known[name][1]][1]) or sharing.get(name)
        if found is None and name in seen.readers:
            return (
                f"its attribute {seen.readers[name]!r} is read outside of its own forward, which a chain does not have"
            )
        return found or (None if name in seen.calls else "its forward was not called in the example run")

    return {name: reason(name, module) for name, module in candidates.items()}


def _trials(
    model: nn.Module, example: object, others: Mapping[str, nn.Module], types: Mapping[type, object]
) -> dict[str, Trial]:
    """Which of the modules of other classes compute what a plain layer does, as far as the example calls them."""
    tried = tried_out(others, types)
    trials = {name: Trial(module, base) for name, (module, base) in tried.items()}
    if trials:
        around = {name: trial.run for name, trial in trials.items()}
        with check_initialised(model), evaluating(model), watching(tried, around):
            call(model, example)
    return trials


def _example_run(model: nn.Module, example: object, known: Mapping[str, tuple[nn.Module, type]]) -> tuple[Seen, float]:
    """What is seen of some layers in a run of the model, and the MACs of all of it."""
    with check_initialised(model), evaluating(model), watching(known) as seen, counting() as macs:
        call(model, example)
    return seen, macs()
