# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Mean and covariance of the patches that enter each layer, collected by running the model."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_hooks import StepEvent
from lowrank_plugin.batches import Progress, batch_size, call, evaluating, no_progress
from lowrank_plugin.errors import CalibrationError
from lowrank_plugin.plugins import manager
from lowrank_plugin.survey import Layer, layer_input

_BLOCKS = 4


class Moments:
    """Streaming mean and covariance of vectors, one pair for each group of a layer.

    Products are taken in the vectors' dtype and summed in float64. Vectors are first shifted by the mean of the first
    batch, so a large mean does not cost digits of the covariance.

    >>> moments = Moments()
    >>> moments.add(torch.tensor([[[1.0, 2.0]], [[3.0, 2.0]]]))
    >>> moments.mean, moments.covariance
    (tensor([[2., 2.]], dtype=torch.float64), tensor([[[1., 0.], [0., 0.]]], dtype=torch.float64))
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift: Tensor | None = None
        self._sum: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, vectors: Tensor) -> None:
        """Take in vectors.

        :param vectors: [N, G, D], float32 or float64, on any device.
        """
        if not vectors.shape[0]:
            return
        if self._shift is None or self._sum is None or self._products is None:
            self._shift = vectors.mean(dim=0)
            self._sum = torch.zeros_like(self._shift, dtype=torch.float64)
            width = vectors.shape[-1]
            self._products = self._sum.new_zeros(vectors.shape[1], width, width)
        centred = (vectors - self._shift).movedim(1, 0)
        self._sum += centred.sum(dim=1, dtype=torch.float64)
        _add_gram(self._products, centred)
        self.count += vectors.shape[0]

    @property
    def finite(self) -> bool:
        """Whether any vector was seen and all were finite."""
        return self._sum is not None and bool(torch.isfinite(self._sum).all())

    @property
    def mean(self) -> Tensor:
        """[G, D], float64."""
        shift, total, _ = self._state()
        return shift.double() + total / self.count

    @property
    def covariance(self) -> Tensor:
        """The centred covariance [G, D, D], float64, exactly symmetric."""
        _, total, products = self._state()
        offset = total / self.count
        upper = torch.triu(products / self.count - offset.unsqueeze(-1) * offset.unsqueeze(-2))
        return upper + torch.triu(upper, diagonal=1).mT

    @property
    def variance(self) -> Tensor:
        """The diagonal of the covariance [G, D], float64."""
        _, total, products = self._state()
        return products.diagonal(dim1=-2, dim2=-1) / self.count - (total / self.count) ** 2

    def _state(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._shift is None or self._sum is None or self._products is None:
            msg = "No vectors have been added yet, so there are no moments."
            raise CalibrationError(msg)
        return self._shift, self._sum, self._products


def _add_gram(total: Tensor, vectors: Tensor) -> None:
    """Add ``vectors.mT @ vectors`` to the upper triangle, block column by block column: the rest is its mirror."""
    width = vectors.shape[-1]
    step = max(256, math.ceil(width / _BLOCKS))
    for start in range(0, width, step):
        stop = min(start + step, width)
        total[..., :stop, start:stop] += vectors[..., :stop].mT @ vectors[..., start:stop]


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and variance of each channel. A sum of two is that of both sets of vectors together.

    >>> first, second = (ChannelStatistics.of(torch.tensor([[value, 5.0]])) for value in (1.0, 3.0))
    >>> (first + second).mean, (first + second).variance
    (tensor([2., 5.], dtype=torch.float64), tensor([1., 0.], dtype=torch.float64))

    :param count: how many vectors.
    :param mean: [C], float64.
    :param variance: [C], float64.
    """

    count: int
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, vectors: Tensor, channel_axes: int = 1) -> ChannelStatistics:
        """Those of vectors, computed in their dtype, at least float32.

        :param vectors: [*positions, *channels], any strides.
        :param channel_axes: how many trailing axes count channels; they are flattened.
        """
        positions = tuple(range(vectors.dim() - channel_axes))
        count = math.prod(vectors.shape[: len(positions)])
        variance, mean = torch.var_mean(_working(vectors), dim=positions, correction=0)
        return cls(count, mean.flatten().double(), variance.flatten().double())

    def __add__(self, other: ChannelStatistics) -> ChannelStatistics:
        count = self.count + other.count
        share, delta = other.count / count, other.mean - self.mean
        spread = self.variance * (1 - share) + other.variance * share
        return ChannelStatistics(count, self.mean + share * delta, spread + share * (1 - share) * delta.square())


@dataclass
class Observed:
    """What was seen of one layer.

    :param inputs: moments of its input patches; nothing was added to them where they were not wanted.
    :param outputs: statistics of its output channels, a value for each call.
    """

    inputs: Moments = field(default_factory=Moments)
    outputs: list[ChannelStatistics] = field(default_factory=list)


def collect(
    model: nn.Module,
    layers: Mapping[str, Layer],
    batches: Sequence[Any],
    *,
    patches: bool = True,
    positions: float = 12.0,
    seed: int = 0,
    progress: Progress = no_progress,
) -> dict[str, Observed]:
    """Run the model over the batches and collect the moments of every layer's input patches and of its output.

    Of each layer about ``positions`` times as many patches are taken as its covariance is wide, drawn at random and
    evenly over the samples; all of them where there are fewer. Zero padding, stride and dilation count as the layer
    sees them.

    :param model: the network; its mode, its parameters and other people's hooks stay as they are.
    :param layers: the layers by name.
    :param batches: model inputs.
    :param patches: whether to look at the inputs; otherwise only at the outputs.
    :param positions: patches taken, as a multiple of the width of the covariance.
    :param seed: seed of the draw.
    :param progress: shows a bar.
    :return: what was seen, by layer name; a layer that was never called has no entry.
    :raises CalibrationError: where the model cannot take a batch.
    """
    samples = sum(batch_size(batch) for batch in batches)
    found: dict[str, Observed] = {}
    share = [0.0]

    def hook_for(layer: Layer) -> Any:
        # a generator of its own, so that a layer's draw does not depend on which others are collected
        generator = torch.Generator().manual_seed(seed + zlib.crc32(layer.name.encode()))
        wanted = positions * layer.shape.in_channels * layer.shape.taps / max(1, len(layer.calls))

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            observed = found.setdefault(layer.name, Observed())
            observed.outputs.append(
                ChannelStatistics.of(layer.adapter.outputs(module, output.detach()), channel_axes=2)
            )
            if patches:
                view = layer.adapter.patches(module, layer_input(args, kwargs).detach())
                axes = view.dim() - 2 - len(layer.shape.kernel_size)
                observed.inputs.add(_working(draw_positions(view, axes, wanted * share[0], generator)).flatten(2))

        return hook

    handles = [
        model.get_submodule(name).register_forward_hook(hook_for(layer), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        with evaluating(model):
            shown = progress(batches, description="Collecting statistics", total=len(batches))
            for done, batch in enumerate(shown, start=1):
                share[0] = batch_size(batch) / samples
                call(model, batch)
                manager().hook.lowrank_step(event=StepEvent("collect", done, len(batches)))
    finally:
        for handle in handles:
            handle.remove()
    return found


def draw_positions(view: Tensor, axes: int, wanted: float, generator: torch.Generator) -> Tensor:
    """Draw vectors from a view without copying the rest of it.

    :param view: [*positions, ...] with ``axes`` leading position axes.
    :param axes: how many leading axes count positions.
    :param wanted: about how many to draw; all where there are fewer.
    :param generator: a generator on the CPU.
    :return: [N, ...], a copy.
    """
    leading = view.shape[:axes]
    total = math.prod(leading)
    if wanted >= total:
        return view.reshape(total, *view.shape[axes:])
    chosen = torch.randperm(total, generator=generator)[: math.ceil(wanted)].to(view.device)
    return view[torch.unravel_index(chosen, leading)]


def _working(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
