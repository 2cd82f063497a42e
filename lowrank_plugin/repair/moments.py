# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Repair after replacement: each chain's output gets the mean and the variance that the layer's output had."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from lowrank_hooks import WeightLayout
from lowrank_plugin.data.batches import call, evaluating
from lowrank_plugin.layers.kinds import Adapters, writable
from lowrank_plugin.layers.survey import Layer
from lowrank_plugin.statistics.moments import ChannelStatistics
from lowrank_plugin.support import processes
from lowrank_plugin.support.hooking import hooked
from lowrank_plugin.support.messages import listed
from lowrank_plugin.support.progress import SILENT, Steps

logger = logging.getLogger(__name__)

_LARGEST_SCALE = 2.0


def match_moments(
    compressed: nn.Module,
    templates: Mapping[str, nn.Module],
    layers: Mapping[str, Layer],
    wanted: Mapping[str, Sequence[ChannelStatistics]],
    batches: Sequence[object],
    adapters: Adapters,
    steps: Steps = SILENT,
) -> None:
    """Give every chain a scale and a shift a channel, absorbed into its last stage.

    While the compressed network runs, each chain's output is corrected with what was seen so far before it goes on, so
    that later chains are matched on the input they will really get. What it is compared with is what the layer put out
    on the same samples, so that the chance of which samples came first cancels.

    Under ``torch.distributed`` the processes run their batches side by side and exchange at each chain what they see
    there: every batch is corrected with itself and those before it, as in one process. A chain that runs more than once
    for a batch would see them in another order, so with such a one every process runs all batches.

    >>> from lowrank_plugin.layers.survey import survey
    >>> from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
    >>> from lowrank_plugin.settings import Settings
    >>> adapters, layer, x = manager().registered(LAYER_ADAPTERS), nn.Linear(2, 3), torch.randn(64, 2)
    >>> model, compressed = nn.Sequential(layer), nn.Sequential(nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 3)))
    >>> layers, wanted = survey(model, x, Settings(), adapters).layers, ChannelStatistics.of(layer(x).detach())
    >>> match_moments(compressed, {"0": layer}, layers, {"0": [wanted]}, [x], adapters)
    >>> torch.allclose(compressed(x).mean(dim=0), layer(x).mean(dim=0), atol=1e-6)
    True

    :param compressed: the network with chains, changed in place.
    :param templates: the layers that the chains came from, by name.
    :param layers: how those are seen.
    :param wanted: the statistics of their outputs in the original network, a value for each call.
    :param batches: the model inputs that those statistics are from, in the same order.
    :param adapters: the layer adapters by name. A chain whose last stage is of a kind that none of them can write to
        (:class:`lowrank_hooks.WeightLayout`) is left as it is.
    :param steps: hears of each batch, as the step ``"repair"``.
    """
    lasts = {name: list(compressed.get_submodule(name).children())[-1] for name in layers}
    layouts = {name: layout for name, last in lasts.items() if (layout := writable(last, adapters)) is not None}
    if left := [name for name in layers if name not in layouts]:
        logger.info("The moments of %s are not matched: no adapter can write to their last stages.", listed(left))
        layers = {name: layers[name] for name in layouts}
    divided = all(len(layer.calls) == 1 for layer in layers.values())
    mine = processes.in_step(batches) if divided else list(batches)
    running = {name: _Running(wanted[name], divided) for name in layers}
    batch: object = None

    def correcting(layer: Layer) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor) -> Tensor:
            result = output.clone()
            view = layer.adapter.outputs(templates[layer.name], result)
            seen = None if batch is None else ChannelStatistics.of(view, channel_axes=2)
            scale, shift = running[layer.name].correction(seen, view.device)
            size = view.shape[-2:]
            view.mul_(scale.to(view).reshape(size)).add_(shift.to(view).reshape(size))
            return result

        return hook

    hooks = {compressed.get_submodule(name): correcting(layer) for name, layer in layers.items()}
    with evaluating(compressed), hooked(hooks):
        for batch in steps.each("repair", "Matching moments", mine):
            # a process that is out of batches runs along, so that the others find it at every chain
            call(compressed, batches[-1] if batch is None else batch)
    logger.info("The moments of %d chains are matched.", sum(bool(each.seen) for each in running.values()))
    for name, each in running.items():
        if each.seen:
            absorb(lasts[name], layouts[name], *correction(each.wanted[len(each.seen) - 1], each.seen[-1]))


class _Running:
    """What a chain should put out and what it did, added up batch after batch, over all processes.

    :param wanted: the statistics of the layer's outputs, in the order of the batches.
    :param divided: whether each process runs batches of its own.
    """

    def __init__(self, wanted: Sequence[ChannelStatistics], divided: bool) -> None:
        self.wanted, self.seen = list(accumulate(wanted)), list[ChannelStatistics]()
        self._divided = divided

    def correction(self, seen: ChannelStatistics | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """Take in an output and say how to correct it.

        :param seen: its statistics; None where it is of no batch of this process's own.
        :param device: where they are wanted.
        """
        before, place = len(self.seen), processes.place() if self._divided else 0
        for each in processes.gathered(seen) if self._divided else [seen]:
            if each is not None:
                self.seen.append(sum(self.seen[-1:], start=each.to(device)))
        index = min(before + place, len(self.seen) - 1)
        return correction(self.wanted[index], self.seen[index])


def correction(wanted: ChannelStatistics, seen: ChannelStatistics) -> tuple[Tensor, Tensor]:
    """The scale and shift that give a channel the wanted mean and variance.

    A channel that hardly varies is only shifted, and no scale exceeds a factor of two either way.

    :param wanted: statistics of the original's output.
    :param seen: statistics of the chain's output.
    :return: scale and shift, [C] each, in float64.
    """
    floor = torch.finfo(torch.float32).eps * wanted.variance.mean()
    ratio = wanted.variance / seen.variance
    alive = (wanted.variance > floor) & (seen.variance > floor)
    scale = torch.where(alive, ratio, torch.ones_like(ratio)).sqrt().clamp(1 / _LARGEST_SCALE, _LARGEST_SCALE)
    return scale, wanted.mean - scale * seen.mean


@torch.no_grad()
def absorb(last: nn.Module, layout: WeightLayout, scale: Tensor, shift: Tensor) -> None:
    """Multiply a layer's output by ``scale`` and add ``shift``, by changing its weight and bias.

    >>> from lowrank_plugin.layers.adapters import LinearAdapter
    >>> layer, x = nn.Linear(2, 3, bias=False), torch.ones(1, 2)
    >>> wanted = 2 * layer(x) + 1
    >>> absorb(layer, LinearAdapter(), torch.full((3,), 2.0), torch.ones(3))
    >>> torch.allclose(layer(x), wanted)
    True

    :param last: a layer, changed in place; it gets a bias if it has none.
    :param layout: of its weight.
    :param scale: one for each output channel [G*T].
    :param shift: likewise.
    """
    weight, old = last.get_parameter("weight"), last._parameters.get("bias")
    kernel = layout.to_kernel(last, weight)
    factors = scale.to(weight).reshape(*kernel.shape[:2], *(1 for _ in kernel.shape[2:]))
    weight.copy_(layout.to_weight(last, kernel * factors))
    if old is None:
        last.register_parameter("bias", nn.Parameter(shift.to(weight), requires_grad=weight.requires_grad))
    else:
        old.copy_(old.double() * scale + shift)
