# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The functions users call: a plan, a plan applied, or both at once."""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from typing_extensions import Unpack

from lowrank_plugin.data.batches import take_batches
from lowrank_plugin.flow.choosing import choose
from lowrank_plugin.flow.compressing import compress
from lowrank_plugin.flow.meter import meter_of
from lowrank_plugin.flow.problems import look
from lowrank_plugin.flow.search import Search, ValidationFunction, judge_of
from lowrank_plugin.flow.sources import FromData, Source
from lowrank_plugin.flow.starting import source_of, start, summary
from lowrank_plugin.flow.subject import Subject
from lowrank_plugin.layers.eager import check_eager
from lowrank_plugin.outputs.given import LossFunction
from lowrank_plugin.plugins import manager
from lowrank_plugin.ranks.plan import Plan
from lowrank_plugin.section import Section
from lowrank_plugin.settings import Settings
from lowrank_plugin.statistics import Statistics
from lowrank_plugin.support.keeping import undisturbed
from lowrank_plugin.support.progress import Progress, Steps, no_progress
from lowrank_plugin.support.validation import Json, JsonObject


def plan(
    model: nn.Module,
    batches: object = None,
    *,
    example_input: object = None,
    statistics: Statistics | None = None,
    validation_fn: ValidationFunction | None = None,
    progress: Progress = no_progress,
    **section: Unpack[Section],
) -> Json:
    """Choose a decomposer and ranks for every layer, without changing anything.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    >>> made = plan(model, [torch.randn(64, 32)], budget={"macs": 0.75}, rank_multiple=1)
    >>> sorted(made["layers"])
    ['0', '2']

    :param model: the network.
    :param batches: calibration data: an ``nncf.Dataset``, a DataLoader, any iterable of batches, or None.
    :param example_input: an input for the model; the first batch where it is left out.
    :param statistics: what :func:`collect_statistics` saw of the model; takes the place of the data, which only the
        repair still needs.
    :param validation_fn: for the budget ``"accuracy_drop"``: called with a model, returns its quality as a number,
        higher is better. It gets copies of the original and of a few compressed ones, in eval mode, without gradients.
    :param progress: wraps an iterable in a progress bar, as NNCF's ``track`` does.
    :param section: the keys of the ``"lowrank"`` section.
    :return: a JSON value for :func:`apply`, which users may edit first.
    :raises ConfigurationError: for settings that cannot be used.
    :raises CalibrationError: for data or an example that cannot be used.
    :raises StatisticsError: where the statistics are of another network.
    :raises BudgetError: where no ranks meet the budget.
    :raises EvaluationError: where ``validation_fn`` fails; it carries the best network found until then.
    """
    with undisturbed():
        settings = Settings.from_mapping(section)
        judge = judge_of(settings, validation_fn)
        subject, source = _begin(model, batches, example_input, settings, statistics, progress)
        meter, problems = meter_of(subject), look(subject, source)
        made = Search(problems, judge, meter).run().plan if judge else choose(problems, meter)
        return made.to_json()


def apply(
    model: nn.Module,
    plan: JsonObject,
    batches: object = None,
    *,
    example_input: object = None,
    statistics: Statistics | None = None,
    inplace: bool = False,
    output: LossFunction | None = None,
    progress: Progress = no_progress,
) -> nn.Module:
    """Compress a model as a plan says.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(32, 32))
    >>> x = torch.randn(64, 32)
    >>> from lowrank_plugin import plan
    >>> made = plan(model, [x], ranks={"0": 16})
    >>> made["layers"]["0"]["rank"] = [8]
    >>> apply(model, made, [x])[0][0]
    Linear(in_features=32, out_features=8, bias=False)

    :param model: the network; it is not changed unless ``inplace``.
    :param plan: a plan, edited or not.
    :param batches: calibration data, as for :func:`plan`; needed where the plan's norm needs it.
    :param example_input: an input for the model; the first batch where it is left out.
    :param statistics: what :func:`collect_statistics` saw of the model; takes the place of the data, which only the
        repair still needs.
    :param inplace: change the model itself.
    :param output: the function that was the plan's ``"output"``: a plan cannot hold one. It is needed for the norm
        ``"two-sided"``; without it, the repair ``"distill"`` refits blocks but not the network as a whole, and says so.
    :param progress: wraps an iterable in a progress bar, as NNCF's ``track`` does.
    :return: the compressed network.
    :raises ConfigurationError: where the function is needed and was not given.
    :raises StatisticsError: where the statistics are of another network.
    :raises PlanError: where the plan does not fit the model, or a layer fails and ``on_failure`` is ``"raise"``.
    """
    with undisturbed():
        made = Plan.from_json(plan)
        settings = made.settings_to_follow if output is None else replace(made.settings_to_follow, output=output)
        subject, source = _begin(model, batches, example_input, settings, statistics, progress, inplace)
        meter, problems = meter_of(subject), look(subject, source, list(made.ranks(subject.survey)))
        left = {name: each for name, each in made.layers.items() if name not in problems.seen.refusals}
        compressed = compress(problems, replace(made, layers=left), inplace=inplace)
        return compressed.model if meter is None else meter.timed(compressed, made)


def decompose(
    model: nn.Module,
    batches: object = None,
    *,
    example_input: object = None,
    statistics: Statistics | None = None,
    inplace: bool = False,
    validation_fn: ValidationFunction | None = None,
    progress: Progress = no_progress,
    **section: Unpack[Section],
) -> nn.Module:
    """Compress a model: :func:`plan` and :func:`apply` in one go, with one pass over the data.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU())
    >>> x = torch.randn(8, 16, 12, 12)
    >>> small = decompose(model, [x], budget={"macs": 0.5}, rank_multiple=1)
    >>> sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    True

    :param model: the network; it is not changed unless ``inplace``.
    :param batches: calibration data: an ``nncf.Dataset``, a DataLoader, any iterable of batches, or None.
    :param example_input: an input for the model; the first batch where it is left out.
    :param statistics: what :func:`collect_statistics` saw of the model; takes the place of the data, which only the
        repair still needs.
    :param inplace: change the model itself.
    :param validation_fn: for the budget ``"accuracy_drop"``: called with a model, returns its quality as a number,
        higher is better. It gets copies of the original and of a few compressed ones, in eval mode, without gradients.
    :param progress: wraps an iterable in a progress bar, as NNCF's ``track`` does.
    :param section: the keys of the ``"lowrank"`` section.
    :return: the compressed network.
    :raises ConfigurationError: for settings that cannot be used.
    :raises CalibrationError: for data or an example that cannot be used.
    :raises StatisticsError: where the statistics are of another network.
    :raises BudgetError: where no ranks meet the budget.
    :raises EvaluationError: where ``validation_fn`` fails; it carries the best network found until then.
    """
    with undisturbed():
        settings = Settings.from_mapping(section)
        judge = judge_of(settings, validation_fn)
        subject, source = _begin(model, batches, example_input, settings, statistics, progress, inplace)
        meter, problems = meter_of(subject), look(subject, source)
        if judge is None:
            made = choose(problems, meter)
            compressed = compress(problems, made, inplace=inplace)
        else:
            search = Search(problems, judge, meter)
            found = search.run()
            made, compressed = found.plan, search.compress(found.plan, inplace=True) if inplace else found.compressed
        return compressed.model if meter is None else meter.timed(compressed, made)


def collect_statistics(
    model: nn.Module,
    batches: object,
    *,
    progress: Progress = no_progress,
    **section: Unpack[Section],
) -> Statistics:
    """Look at data once: what :func:`plan`, :func:`apply` and :func:`decompose` then need in its place.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    >>> seen = collect_statistics(model, [torch.randn(64, 32)])
    >>> half, third = (plan(model, statistics=seen, budget={"macs": share}, rank_multiple=1) for share in (0.5, 0.33))
    >>> half["model"]["macs"][1] > third["model"]["macs"][1]
    True

    :param model: the network; it is not changed.
    :param batches: calibration data, as for :func:`plan`.
    :param progress: wraps an iterable in a progress bar, as NNCF's ``track`` does.
    :param section: the keys of the ``"lowrank"`` section that concern it: scopes, ``output``, ``calibration``,
        ``seed``.
    :return: statistics that can be saved, loaded and merged.
    :raises ConfigurationError: for settings that cannot be used.
    :raises CalibrationError: for data that cannot be used.
    """
    with undisturbed():
        settings = replace(Settings.from_mapping(section, goal=False), norm="covariance")
        check_eager(model)
        source, registry = FromData(take_batches(model, batches, settings.calibration.samples)), manager()
        return summary(start(model, source, None, settings, registry, Steps(progress, registry.observe)), source)


def _begin(
    model: nn.Module,
    batches: object,
    example: object,
    settings: Settings,
    statistics: Statistics | None,
    progress: Progress,
    inplace: bool | None = None,
) -> tuple[Subject, Source]:
    """The model, surveyed, and where its layers' inputs are known from; with all plugins that are installed."""
    source, registry = source_of(model, batches, settings, statistics), manager()
    steps = Steps(progress, registry.observe)
    return start(model, source, example, settings, registry, steps, inplace), source
