# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Where it is known from what layers get and put out: from data, or from statistics of data seen before."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from torch import Tensor

from lowrank_plugin.errors import CalibrationError
from lowrank_plugin.flow.subject import Subject
from lowrank_plugin.layers.survey import Layer
from lowrank_plugin.outputs.reading import Outputs
from lowrank_plugin.statistics import Statistics, passes
from lowrank_plugin.statistics.collection import Observed, collect, warn_of_few
from lowrank_plugin.statistics.exchange import combined
from lowrank_plugin.statistics.gradients import collect_gradients
from lowrank_plugin.statistics.moments import ChannelStatistics
from lowrank_plugin.statistics.weighing import Trial, Weighed, weigh
from lowrank_plugin.support import processes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """What was seen of some layers.

    :param observed: moments of their input patches and statistics of their outputs, by layer name.
    :param refusals: layers that cannot be compressed, as was seen, with the reason.
    :param memory: ``peak``, bytes that collecting needed at the most, and ``passes`` over the data; empty where nothing
        was collected.
    """

    observed: Mapping[str, Observed] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)


class Source(Protocol):
    """What the flow asks, whether the answers are measured now or were written down earlier."""

    @property
    def batches(self) -> Sequence[object]:
        """Model inputs that the network may be run on; empty where there are none."""
        ...

    @property
    def known(self) -> bool:
        """Whether anything can be seen of the layers' inputs, which all norms but the plain one need."""
        ...

    def example(self) -> object:
        """An input for the model.

        :raises CalibrationError: where there is none.
        """
        ...

    def look(self, subject: Subject, names: Sequence[str]) -> Seen:
        """What is seen of some layers' inputs and outputs."""
        ...

    def gradients(self, subject: Subject, names: Sequence[str]) -> Mapping[str, Tensor]:
        """Second moments of the gradients of the model's output with respect to some layers' outputs."""
        ...

    def weights(self, subject: Subject, trials: Mapping[str, Sequence[Trial]]) -> Weighed:
        """What errors at each layer cost the model.

        :param subject: the model.
        :param trials: chains for each layer; empty where :attr:`tries` is False.
        """
        ...

    @property
    def tries(self) -> bool:
        """Whether :meth:`weights` needs trials."""
        ...

    def outputs(self, subject: Subject, seen: Seen, names: Sequence[str]) -> Mapping[str, Sequence[ChannelStatistics]]:
        """What some layers put out on :attr:`batches`, a value for each call."""
        ...


class FromData:
    """Measures on batches, as many as there are; without any, nothing is known.

    :param batches: model inputs.
    """

    def __init__(self, batches: Sequence[object]) -> None:
        self.batches = batches

    @property
    def known(self) -> bool:
        """Whether there is data."""
        return bool(self.batches)

    tries = known

    def example(self) -> object:
        """The first batch."""
        if not self.batches:
            msg = "Give calibration data or an example_input: the model is run once to see its layers and their sizes."
            raise CalibrationError(msg)
        return self.batches[0]

    def look(self, subject: Subject, names: Sequence[str]) -> Seen:
        """Run the model, in as many passes as the memory allowed asks for."""
        if not self.batches:
            return Seen()
        layers = {name: subject.survey.layers[name] for name in names}
        if not subject.norm.weighted:
            return _checked(Seen(run_over(subject, layers, self.batches, patches=False)), layers, patches=False)
        calibration = subject.settings.calibration
        needed = passes.divide(
            subject.model, layers, self.batches, positions=calibration.positions, memory_gb=calibration.memory_gb
        )
        look = partial(_look_at_some, subject, self.batches)
        observed = passes.collect_in_passes(look, needed.groups)
        memory = {"peak": needed.peak, "passes": len(needed.groups)}
        return _checked(Seen(observed, needed.refusals, memory), layers, patches=True)

    def gradients(self, subject: Subject, names: Sequence[str]) -> Mapping[str, Tensor]:
        """Run the model forwards and backwards."""
        layers = {name: subject.survey.layers[name] for name in names}
        if not (self.batches and layers):
            return {}
        outputs = Outputs.of(subject.model, subject.settings.output)
        return collect_gradients(
            subject.model, layers, self.batches, seed=subject.settings.seed, steps=subject.steps, outputs=outputs
        )

    def weights(self, subject: Subject, trials: Mapping[str, Sequence[Trial]]) -> Weighed:
        """Run the model with all trials at once, forwards and backwards."""
        if not self.batches:
            return Weighed()
        outputs = Outputs.of(subject.model, subject.settings.output)
        costs = weigh(
            subject.model, trials, self.batches, seed=subject.settings.seed, steps=subject.steps, outputs=outputs
        )
        return Weighed(costs, outputs.unit)

    def outputs(self, subject: Subject, seen: Seen, names: Sequence[str]) -> Mapping[str, Sequence[ChannelStatistics]]:
        """Seen already, together with the inputs."""
        return {name: seen.observed[name].outputs if name in seen.observed else [] for name in names}


class FromStatistics:
    """Reads in statistics that were collected before.

    :param statistics: of this very network.
    :param batches: model inputs, for what only running the network tells; may be empty.
    """

    def __init__(self, statistics: Statistics, batches: Sequence[object] = ()) -> None:
        self.statistics, self.batches = statistics, batches

    known, tries = True, False

    def example(self) -> object:
        """The first batch; without batches, zeros of the shape that the statistics remember."""
        return self.batches[0] if self.batches else self.statistics.inputs()

    def look(self, subject: Subject, names: Sequence[str]) -> Seen:
        """What was written down of these layers."""
        layers = {name: subject.survey.layers[name] for name in names}
        observed = {name: self.statistics.layers[name] for name in names if name in self.statistics.layers}
        return _checked(Seen(observed), layers, patches=subject.norm.weighted)

    def gradients(self, subject: Subject, names: Sequence[str]) -> Mapping[str, Tensor]:
        """What was written down of them."""
        return {name: self.statistics.gradients[name] for name in names if name in self.statistics.gradients}

    def weights(self, subject: Subject, trials: Mapping[str, Sequence[Trial]]) -> Weighed:
        """What was written down of them."""
        return Weighed(self.statistics.costs, self.statistics.unit)

    def outputs(self, subject: Subject, seen: Seen, names: Sequence[str]) -> Mapping[str, Sequence[ChannelStatistics]]:
        """Run the model: the batches may be others than those that the statistics are of."""
        observed = run_over(subject, {name: subject.survey.layers[name] for name in names}, self.batches, patches=False)
        return {name: observed[name].outputs if name in observed else [] for name in names}


def run_over(
    subject: Subject, layers: Mapping[str, Layer], batches: Sequence[object], *, patches: bool
) -> dict[str, Observed]:
    """Run the model over data, under ``torch.distributed`` each process over its share, and look at some layers.

    :param subject: the model.
    :param layers: the layers by name.
    :param batches: model inputs.
    :param patches: whether to look at the inputs; otherwise only at the outputs.
    :return: what was seen by all processes; a layer that was never called has no entry.
    """
    look = partial(
        collect,
        subject.model,
        layers,
        batches,
        patches=patches,
        positions=subject.settings.calibration.positions,
        seed=subject.settings.seed,
        places=[place for place, _ in processes.share(batches)],
        steps=subject.steps,
    )
    return combined(processes.together(look), next(subject.model.parameters()).device)


def _look_at_some(subject: Subject, batches: Sequence[object], names: Sequence[str]) -> dict[str, Observed]:
    return run_over(subject, {name: subject.survey.layers[name] for name in names}, batches, patches=True)


def _checked(seen: Seen, layers: Mapping[str, Layer], *, patches: bool) -> Seen:
    """With the layers refused that were not called or whose inputs are of no use."""
    refusals = dict(seen.refusals)
    for name in layers:
        if name in refusals:
            continue
        if name not in seen.observed:
            refusals[name] = "its forward was not called on the calibration data"
        elif patches and not seen.observed[name].patches.finite:
            refusals[name] = "its inputs contain NaN or infinity"
    if patches:
        warn_of_few({name: layer for name, layer in layers.items() if name not in refusals}, seen.observed)
    return Seen(seen.observed, refusals, seen.memory)
