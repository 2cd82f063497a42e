# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Repair after replacement: each chain's output gets the mean and the variance that the layer's output had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_hooks import StepEvent
from lowrank_plugin.batches import Progress, call, evaluating, no_progress
from lowrank_plugin.plugins import manager
from lowrank_plugin.survey import Layer

_LARGEST_SCALE = 2.0


class ChannelStatistics:
    """Streaming mean and variance of each channel, in float64.

    >>> statistics = ChannelStatistics()
    >>> statistics.add(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    >>> statistics.mean, statistics.variance
    (tensor([2., 5.], dtype=torch.float64), tensor([1., 0.], dtype=torch.float64))
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self._squares: Tensor = torch.zeros(())

    def add(self, vectors: Tensor) -> None:
        """Take in vectors [N, C], by the pairwise update of Chan, Golub and LeVeque."""
        added = vectors.shape[0]
        mean = vectors.mean(dim=0, dtype=torch.float64)
        squares = (vectors - mean.to(vectors)).square().sum(dim=0, dtype=torch.float64)
        if self.count == 0:
            self.count, self.mean, self._squares = added, mean, squares
            return
        total, delta = self.count + added, mean - self.mean
        self._squares = self._squares + squares + delta.square() * (self.count * added / total)
        self.mean = self.mean + delta * (added / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """[C]."""
        return self._squares / max(self.count, 1)


def match_moments(
    original: nn.Module,
    compressed: nn.Module,
    layers: Mapping[str, Layer],
    batches: Sequence[Any],
    progress: Progress = no_progress,
) -> None:
    """Give every chain a scale and a shift a channel, absorbed into its last stage.

    The networks run side by side, batch by batch. While the compressed one runs, each chain's output is corrected with
    what was seen so far before it goes on, so that later chains are matched on the input they will really get.

    :param original: the network before compression.
    :param compressed: the network with chains, changed in place.
    :param layers: the layers that have become chains.
    :param batches: model inputs.
    :param progress: shows a bar.
    """
    wanted = {name: ChannelStatistics() for name in layers}
    seen = {name: ChannelStatistics() for name in layers}

    def observe(layer: Layer, statistics: ChannelStatistics, module: nn.Module, output: Tensor) -> None:
        view = layer.adapter.outputs(module, output.detach())
        vectors = view.reshape(-1, layer.shape.groups * layer.shape.out_channels)
        statistics.add(vectors if vectors.dtype == torch.float64 else vectors.float())

    def observing(layer: Layer) -> Any:
        return lambda module, args, output: observe(layer, wanted[layer.name], module, output)

    def correcting(layer: Layer, template: nn.Module) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            observe(layer, seen[layer.name], template, output)
            scale, shift = correction(wanted[layer.name], seen[layer.name])
            return _per_channel(layer, template, output, scale, shift)

        return hook

    handles = [original.get_submodule(name).register_forward_hook(observing(layer)) for name, layer in layers.items()]
    handles += [
        compressed.get_submodule(name).register_forward_hook(correcting(layer, original.get_submodule(name)))
        for name, layer in layers.items()
    ]
    try:
        with evaluating(original), evaluating(compressed):
            for done, batch in enumerate(
                progress(batches, description="Matching moments", total=len(batches)), start=1
            ):
                call(original, batch)
                call(compressed, batch)
                manager().hook.lowrank_step(event=StepEvent("repair", done, len(batches)))
    finally:
        for handle in handles:
            handle.remove()
    for name in layers:
        if seen[name].count:
            absorb(compressed.get_submodule(name)[-1], *correction(wanted[name], seen[name]))  # type: ignore[index]


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


def absorb(last: Any, scale: Tensor, shift: Tensor) -> None:
    """Multiply a layer's output by ``scale`` and add ``shift``, by changing its weight and bias.

    :param last: a convolution or linear layer; it gets a bias if it has none.
    :param scale: [C].
    :param shift: [C].
    """
    with torch.no_grad():
        weight = last.weight
        weight.mul_(scale.to(weight).reshape(-1, *(1 for _ in weight.shape[1:])))
        bias = shift if last.bias is None else last.bias.double() * scale + shift
        if last.bias is None:
            last.bias = nn.Parameter(bias.to(weight), requires_grad=weight.requires_grad)
        else:
            last.bias.copy_(bias)


def _per_channel(layer: Layer, template: nn.Module, output: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    result = output.clone()
    view = layer.adapter.outputs(template, result)
    size = view.shape[-2:]
    view.mul_(scale.to(view).reshape(size)).add_(shift.to(view).reshape(size))
    return result
