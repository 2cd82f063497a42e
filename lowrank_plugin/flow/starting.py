# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The beginning of the flow: data or statistics, the survey of the model, and the norm."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from lowrank_hooks import StepEvent
from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.flow.choosing import weights_of
from lowrank_plugin.flow.problems import look
from lowrank_plugin.flow.sources import FromData, FromStatistics, Source
from lowrank_plugin.flow.subject import Subject
from lowrank_plugin.layers.survey import survey
from lowrank_plugin.plugins import LAYER_ADAPTERS, Manager
from lowrank_plugin.settings import Settings
from lowrank_plugin.statistics import Statistics
from lowrank_plugin.statistics.norms import norm_of
from lowrank_plugin.statistics.snapshot import summarise
from lowrank_plugin.support.batches import one_sample, take_batches
from lowrank_plugin.support.progress import Steps

logger = logging.getLogger(__name__)


def source_of(model: nn.Module, data: Any, settings: Settings, statistics: Statistics | None = None) -> Source:
    """Where it is known from what layers get and put out.

    :param model: the network, to tell inputs from labels.
    :param data: calibration data, or None.
    :param settings: for the number of samples.
    :param statistics: in place of what would be seen of the data; or None.
    :raises CalibrationError: where the data cannot be used.
    """
    batches = [] if data is None else take_batches(model, data, settings.calibration.samples)
    return FromData(batches) if statistics is None else FromStatistics(statistics, batches)


def start(
    model: nn.Module, source: Source, example: Any, settings: Settings, registry: Manager, steps: Steps
) -> Subject:
    """Run the model once and see what of it can be compressed.

    :param model: the network; it is left as it was.
    :param source: where its layers' inputs are known from.
    :param example: an input for it; None takes one of the source.
    :param settings: what the user asked for.
    :param registry: what plugins offer.
    :param steps: who hears of the steps.
    :raises ConfigurationError: where the device or the norm cannot be used.
    :raises CalibrationError: where the example cannot be used.
    :raises StatisticsError: where the statistics are of another network.
    """
    check_device(settings.device)
    norm = norm_of(settings.norm, source.known)
    first = source.example() if example is None else example
    found = survey(model, first, settings, registry.registered(LAYER_ADAPTERS))
    steps.observe(StepEvent("survey", len(found.layers), len(found.layers)))
    if isinstance(source, FromStatistics):
        source.statistics.check(model, found.layers)
    sample = one_sample(first) if example is None else example
    return Subject(model, found, settings, norm, sample, registry, steps)


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
    gradients = source.gradients(subject, names)
    return summarise(
        subject.model,
        subject.survey.layers,
        problems.seen.observed,
        gradients,
        weights_of(problems, names),
        source.batches,
        subject.settings,
    )
