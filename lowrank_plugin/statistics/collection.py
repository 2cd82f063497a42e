# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Mean and covariance of the patches that enter each layer, collected by running the model."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lowrank_plugin.data.batches import batch_size, call, evaluating
from lowrank_plugin.layers.survey import Layer, layer_input
from lowrank_plugin.statistics.autocorrelation import Autocorrelation, Geometry
from lowrank_plugin.statistics.moments import ChannelStatistics, Moments, working
from lowrank_plugin.statistics.sampling import draw
from lowrank_plugin.statistics.vectors import Inputs, Vectors
from lowrank_plugin.support.hooking import hooked
from lowrank_plugin.support.messages import listed
from lowrank_plugin.support.progress import SILENT, Steps

logger = logging.getLogger(__name__)

ENOUGH = 512
"""Patches, or positions of maps, that are gathered before they are added to the sums."""


@dataclass
class Observed:
    """What was seen of one layer.

    A layer may be called more than once for a batch, and processes may have seen different batches; so each output
    comes with the number of its batch, by which the outputs of all processes are put in order. In a sum of two these
    numbers would mean two things, and it has none.

    >>> first, second = (ChannelStatistics.of(torch.full((5, 2), value)) for value in (1.0, 3.0))
    >>> both = Observed(outputs=[first], batch_numbers=[0]) + Observed(outputs=[second], batch_numbers=[0])
    >>> len(both.outputs), both.batch_numbers
    (2, [])

    :param patches: sums over its input patches, or these themselves; nothing was added where they were not wanted.
    :param outputs: statistics of its output channels, a value for each call.
    :param batch_numbers: for each of the outputs the number of the batch it was seen on; empty where that is no longer
        known.
    """

    patches: Inputs | Autocorrelation = field(default_factory=Moments)
    outputs: list[ChannelStatistics] = field(default_factory=list)
    batch_numbers: list[int] = field(default_factory=list)

    @property
    def inputs(self) -> Inputs:
        """The moments of its input patches; put together anew each time for layers that are as wide as deep."""
        return self.patches.moments()

    def __add__(self, other: Observed) -> Observed:
        return Observed(_added(self.patches, other.patches), [*self.outputs, *other.outputs])


def _added(first: Inputs | Autocorrelation, second: Inputs | Autocorrelation) -> Inputs | Autocorrelation:
    """Sums over both; maps of different sizes have only the moments of their patches in common."""
    if isinstance(first, Autocorrelation) and isinstance(second, Autocorrelation) and first.geometry == second.geometry:
        return first + second
    return first.moments() + second.moments()


def collect(
    model: nn.Module,
    layers: Mapping[str, Layer],
    batches: Sequence[object],
    *,
    patches: bool = True,
    positions: float = 12.0,
    seed: int = 0,
    places: Sequence[int] | None = None,
    steps: Steps = SILENT,
) -> dict[str, Observed]:
    """Run the model over the batches and collect the moments of every layer's input patches and of its output.

    Of each layer about ``positions`` times as many patches are taken as its covariance is wide, drawn at random and
    evenly over the samples; all of them where there are fewer, and where their correlations take less arithmetic than
    the products of the drawn ones (:mod:`lowrank_plugin.statistics.autocorrelation`). Of linear layers that are much
    wider than there are vectors these themselves are kept (:mod:`lowrank_plugin.statistics.vectors`). Zero padding,
    stride and dilation count as the layer sees them.

    >>> from lowrank_plugin.layers.survey import survey
    >>> from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
    >>> from lowrank_plugin.settings import Settings
    >>> model, batches = nn.Sequential(nn.Linear(2, 3)), [torch.tensor([[1.0, 2.0], [3.0, 2.0]])]
    >>> found = survey(model, batches[0], Settings(), manager().registered(LAYER_ADAPTERS))
    >>> observed = collect(model, found.layers, batches)["0"]
    >>> observed.inputs.mean, observed.outputs[0].count
    (tensor([[2., 2.]], dtype=torch.float64), 2)

    :param model: the network; its mode, its parameters and other people's hooks stay as they are.
    :param layers: the layers by name.
    :param batches: model inputs.
    :param patches: whether to look at the inputs; otherwise only at the outputs.
    :param positions: patches taken, as a multiple of the width of the covariance.
    :param seed: seed of the draw.
    :param places: numbers of the batches to run, where other processes run the others; None for all.
    :param steps: hears of each batch, as the step ``"collect"``.
    :return: what was seen, by layer name; a layer that was never called has no entry.
    :raises CalibrationError: where the model cannot take a batch.
    """
    samples = sum(batch_size(batch) for batch in batches)
    taps = [_Tap(layer, model.get_submodule(name), samples, positions, patches) for name, layer in layers.items()]
    chosen = range(len(batches)) if places is None else places
    with evaluating(model), hooked({tap.module: tap for tap in taps}):
        for place in steps.each("collect", "Collecting statistics", chosen):
            for tap in taps:
                tap.prepare(place, batch_size(batches[place]) / samples, seed)
            call(model, batches[place])
    for tap in taps:
        tap.finish()
    return {tap.layer.name: tap.observed for tap in taps if tap.observed.outputs}


class _Tap:
    """A hook that looks at one layer's inputs and outputs.

    :param layer: how it is seen.
    :param module: its module.
    :param samples: how many samples there will be in all, over all processes.
    :param positions: patches wanted, as a multiple of the width of the covariance.
    :param patches: whether to look at the inputs.
    """

    def __init__(self, layer: Layer, module: nn.Module, samples: int, positions: float, patches: bool) -> None:
        self.layer, self.module, self.patches = layer, module, patches
        self.wanted = positions * layer.shape.in_channels * layer.shape.taps / max(1, len(layer.calls))
        self.observed = Observed()
        geometry = correlated(layer, module, samples, positions) if patches else None
        if geometry is not None:
            self.observed.patches, self.wanted = Autocorrelation(geometry), math.inf
        elif patches and Vectors.expected(layer, samples, positions) is not None:
            self.observed.patches = Vectors()
        self.generator = torch.Generator()
        self.batch_number, self.fraction = 0, 0.0
        self.waiting: list[Tensor] = []

    def prepare(self, batch_number: int, fraction: float, seed: int) -> None:
        """Announce a batch.

        :param batch_number: its place among all batches.
        :param fraction: of all samples that are in it.
        :param seed: of the draw; what is drawn depends on no other layer and no other batch.
        """
        self.batch_number, self.fraction = batch_number, fraction
        self.generator.manual_seed(zlib.crc32(f"{self.layer.name}/{seed}/{batch_number}".encode()))

    def __call__(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor) -> None:
        # modes that number a module's operations, as NNCF's does, must not see these
        with torch._C.DisableTorchFunction():
            self._look(module, layer_input(args, kwargs).detach(), output.detach())

    def _look(self, module: nn.Module, inputs: Tensor, output: Tensor) -> None:
        adapter, observed = self.layer.adapter, self.observed
        observed.batch_numbers.append(self.batch_number)
        observed.outputs.append(ChannelStatistics.of(adapter.outputs(module, output), channel_axes=2))
        if not self.patches:
            return
        if isinstance(observed.patches, Autocorrelation):
            if observed.patches.takes(inputs):
                self._take(working(inputs), inputs[0, 0].numel())
                return
            self.finish()
            observed.patches = observed.patches.moments()
        self._take(working(draw(adapter, module, inputs, output, self.wanted * self.fraction, self.generator)), 1)

    def _take(self, values: Tensor, rows: int) -> None:
        """Add values at once where they are many; sums are large, and small batches must not rewrite them each time."""
        if rows * sum(len(each) for each in (*self.waiting, values)) >= ENOUGH:
            self.waiting.append(values)
            self.finish()
        else:
            # a copy, because the network may go on to change its own in place
            self.waiting.append(values.clone())

    def finish(self) -> None:
        """Add what still waits."""
        if self.waiting:
            self.observed.patches.add(torch.cat(self.waiting) if len(self.waiting) > 1 else self.waiting[0])
            self.waiting.clear()


def correlated(layer: Layer, module: nn.Module, samples: int, positions: float) -> Geometry | None:
    """Where correlating whole maps takes less arithmetic than products of drawn patches: what is to be correlated.

    :param layer: how it is seen, and the sizes of its maps in the example run.
    :param module: its module, for its windows.
    :param samples: how many samples there will be in all, over all processes.
    :param positions: patches wanted, as a multiple of the width of the covariance.
    :return: None where products of drawn patches take less, or its patches are no windows of stride 1.
    """
    if len({(before[1:], after[1:]) for before, after in layer.calls}) != 1:
        return None
    before, after = layer.calls[0]
    geometry = Geometry.of(layer.adapter, module, before, after)
    if geometry is None or geometry.bytes > product_bytes(layer):
        return None
    width, calls = layer.shape.in_channels * layer.shape.taps, len(layer.calls)
    drawn = min(positions * width, samples * calls * math.prod(after[2:]))
    # of a product with itself only one triangle is computed, up to blocks
    direct = 0.6 * drawn * layer.shape.groups * width**2
    return geometry if samples * calls * geometry.multiplications < direct else None


def warn_of_few(layers: Mapping[str, Layer], observed: Mapping[str, Observed]) -> None:
    """Say which covariances are of fewer patches than they are wide.

    :param layers: the layers by name.
    :param observed: what was seen of them.
    """
    few = [
        name
        for name, layer in layers.items()
        if name in observed and observed[name].patches.count < layer.shape.in_channels * layer.shape.taps
    ]
    if few:
        logger.warning(
            "Few samples: layers %s got fewer patches than their covariances are wide, which are therefore shrunk "
            "towards a multiple of the identity. More calibration samples lower the error.",
            listed(few),
        )


def product_bytes(layer: Layer) -> int:
    """What the products of a layer's patches need, and their sums."""
    width = layer.shape.in_channels * layer.shape.taps
    return 8 * layer.shape.groups * width * (width + 1)
