# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The beginning of the flow: data or statistics, the survey of the model, and the norm."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import nn

from lowrank_hooks import StepEvent
from lowrank_plugin.chains.stages import inner_stages
from lowrank_plugin.data.batches import one_sample, take_batches, take_example
from lowrank_plugin.errors import ConfigurationError, LowRankError
from lowrank_plugin.flow.choosing import weights_of
from lowrank_plugin.flow.problems import look
from lowrank_plugin.flow.sources import FromData, FromStatistics, Source
from lowrank_plugin.flow.subject import Subject
from lowrank_plugin.layers.eager import check_eager
from lowrank_plugin.layers.reach import out_of_reach
from lowrank_plugin.layers.survey import survey
from lowrank_plugin.plugins import LAYER_ADAPTERS, Manager
from lowrank_plugin.ranks.budgets import needs_validation
from lowrank_plugin.settings import Settings
from lowrank_plugin.statistics import Statistics
from lowrank_plugin.statistics.norms import norm_of
from lowrank_plugin.statistics.snapshot import summarise
from lowrank_plugin.support.copying import copied
from lowrank_plugin.support.progress import Steps

logger = logging.getLogger(__name__)


def source_of(model: nn.Module, data: object, settings: Settings, statistics: Statistics | None = None) -> Source:
    """Where it is known from what layers get and put out.

    :param model: the network, to tell inputs from labels.
    :param data: calibration data, or None.
    :param settings: for the number of samples.
    :param statistics: in place of what would be seen of the data; or None.
    :raises CalibrationError: where the data cannot be used.
    :raises ConfigurationError: where the model is no eager module.
    """
    check_eager(model)
    batches = [] if data is None else take_batches(model, data, settings.calibration.samples)
    return FromData(batches) if statistics is None else FromStatistics(statistics, batches)


def start(
    model: nn.Module,
    source: Source,
    example: object,
    settings: Settings,
    registry: Manager,
    steps: Steps,
    inplace: bool | None = None,
) -> Subject:
    """Run the model and see what of it can be compressed.

    :param model: the network; it is left as it was.
    :param source: where its layers' inputs are known from.
    :param example: an input for it; None takes one of the source.
    :param settings: what the user asked for.
    :param registry: what plugins offer.
    :param steps: who hears of the steps.
    :param inplace: whether the model itself or a copy will be changed; None where that is not known yet.
    :raises LowRankError: where a copy is needed and the model cannot be copied.
    :raises ConfigurationError: where the device or the norm cannot be used.
    :raises CalibrationError: where the example cannot be used.
    :raises StatisticsError: where the statistics are of another network.
    """
    check_device(settings.device)
    norm = norm_of(settings.norm, source.known)
    first = source.example() if example is None else take_example(model, example)
    found = survey(model, first, settings, registry.registered(LAYER_ADAPTERS))
    steps.observe(StepEvent("survey", len(found.layers), len(found.layers)))
    if isinstance(source, FromStatistics):
        source.statistics.check(model, found.layers)
        settings = replace(settings, output=source.statistics.output_for(settings.output))
    sample = one_sample(first) if example is None else first
    subject = Subject(model, found, settings, norm, sample, registry, steps, inner_stages(model))
    return subject.without(out_of_reach(_changed(model, inplace, settings), found.layers, first))


def _changed(model: nn.Module, inplace: bool | None, settings: Settings) -> nn.Module:
    """The network that chains are put into: functions that hold modules hold in a copy still those of the original.

    Where a copy is needed, it is made here for the first time, so that one that cannot be made fails early.
    """
    if inplace and settings.repair != "distill" and not needs_validation(settings.budget):
        return model
    try:
        network = copied(model)
    except LowRankError:
        if inplace is None:
            return model
        raise
    return model if inplace else network


def check_device(device: str | None) -> None:
    """See that a device can be used.

    >>> check_device("cpu")

    :param device: its name; None for the model's own.
    :raises ConfigurationError: where it cannot.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        msg = f"The device {device!r} cannot be used here: {str(error).splitlines()[0]}"
        raise ConfigurationError(msg) from error


def summary(subject: Subject, source: FromData) -> Statistics:
    """Look at all layers and keep what was seen.

    :param subject: the model, in a norm that its inputs count in.
    :param source: the data.
    """
    problems = look(subject, source)
    subject = problems.subject
    names = list(subject.survey.layers)
    gradients, weighed = source.gradients(subject, names), weights_of(problems, names)
    return summarise(
        subject.model,
        subject.survey.layers,
        problems.seen.observed,
        gradients,
        weighed,
        source.batches,
        subject.settings,
    )
