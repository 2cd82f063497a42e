# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""From a plan to a compressed network: fit, replace, repair, and a record of what was done."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as with_fields

import torch
from torch import nn

from lowrank_hooks import Rank
from lowrank_plugin.chains.fitting import Fitted, fit
from lowrank_plugin.chains.record import RECORD, Record, attach, record_of
from lowrank_plugin.chains.recording import make_record
from lowrank_plugin.data.batches import evaluating
from lowrank_plugin.errors import PlanError
from lowrank_plugin.flow.problems import Problems
from lowrank_plugin.flow.subject import Subject, refuse
from lowrank_plugin.layers.holders import bias_of
from lowrank_plugin.layers.replacement import make_chain, replace
from lowrank_plugin.outputs.kinds import AUTO, written_described
from lowrank_plugin.outputs.reading import Outputs
from lowrank_plugin.plugins import DECOMPOSERS, LAYER_ADAPTERS
from lowrank_plugin.ranks.plan import Plan
from lowrank_plugin.repair.checkpoint import Errors, Notebook
from lowrank_plugin.repair.distill import distill
from lowrank_plugin.repair.moments import match_moments
from lowrank_plugin.statistics.snapshot import digest
from lowrank_plugin.support.copying import copied

logger = logging.getLogger(__name__)

Solved = dict[tuple[str, str, Rank], "Fitted | str"]
"""Layers at a rank by a decomposer: what was solved, or the reason why that failed."""


@dataclass(frozen=True)
class Compressed:
    """What came of a plan.

    :param model: the network; it carries its record.
    :param record: what was done.
    :param refusals: layers of the plan that could not be solved and stayed dense, with the reason.
    """

    model: nn.Module
    record: Record
    refusals: Mapping[str, str] = field(default_factory=dict)


def compress(problems: Problems, plan: Plan, *, inplace: bool, solved: Solved | None = None) -> Compressed:
    """Fit, replace and repair.

    :param problems: the problems of the layers that the plan compresses, at least.
    :param plan: the plan.
    :param inplace: whether the model itself is changed.
    :param solved: what was solved before, which is not solved again; what is solved now is added.
    :raises PlanError: where the plan does not fit the model, or a layer fails and ``on_failure`` is ``"raise"``.
    """
    ranks = plan.ranks(problems.subject.survey)
    fitted, refusals = _fit(problems, ranks, {} if solved is None else solved)
    refuse(refusals, problems.subject.settings.on_failure)
    problems = problems.without(refusals)
    subject, repair = problems.subject, problems.subject.settings.repair
    earlier = record_of(subject.model) if hasattr(subject.model, RECORD) else None
    templates = {name: subject.model.get_submodule(name) for name in subject.survey.layers}
    original = copied(subject.model) if inplace and repair == "distill" else subject.model
    compressed = _replaced(subject, fitted, inplace)
    distilled: Errors = {}
    if fitted and problems.source.batches and repair != "none":
        chains = {name: ranks[name] for name in fitted}
        with evaluating(original):  # functions that hold its modules may be part of the copy
            distilled = _repair(problems, original, compressed, templates, chains)
    elif fitted and problems.source.known and repair != "none":
        logger.warning("Repair is skipped: it runs the network on data, but only statistics were given.")
    record = make_record(plan, subject.survey, fitted, templates, compressed, distilled)
    record = with_fields(record, earlier=earlier)
    attach(compressed, record)
    return Compressed(compressed, record, refusals)


def _fit(
    problems: Problems, ranks: Mapping[str, tuple[str, Rank]], solved: Solved
) -> tuple[dict[str, Fitted], dict[str, str]]:
    """Solve for the factors of layers; those that have usable ones, and for the others the reason why not."""
    keys = {name: (name, *choice) for name, choice in ranks.items()}
    new = problems.each(
        "fit",
        "Fitting layers",
        [name for name, key in keys.items() if key not in solved],
        lambda names: _solve(problems, names, *ranks[names[0]]),
        kind=ranks.__getitem__,
    )
    solved.update((keys[name], each) for name, each in new.items())
    fitted, refusals = dict[str, Fitted](), dict[str, str]()
    for name, key in keys.items():
        each = solved[key]
        if isinstance(each, str):
            refusals[name] = each
        elif each.is_usable:
            fitted[name] = each
        else:
            refusals[name] = f"its fit failed: {each.solution.status.value}"
    return fitted, refusals


def _solve(problems: Problems, names: Sequence[str], decomposer: str, rank: Rank) -> Sequence[Fitted | str]:
    """Fit layers of one shape; or the reason why that failed."""
    subject = problems.subject
    record = subject.registry.find(DECOMPOSERS, decomposer)
    modules = [subject.model.get_submodule(name) for name in names]
    biases = [bias_of(module) for module in modules]
    asked, inputs = [problems[name] for name in names], [problems.inputs(name) for name in names]
    try:
        fitted = fit(asked, record.decomposer, rank, biases, inputs)
    except (torch.linalg.LinAlgError, ValueError) as error:
        if len(names) > 1:  # which one it was is seen alone
            return [each for name in names for each in _solve(problems, [name], decomposer, rank)]
        if isinstance(error, torch.linalg.LinAlgError):
            return [f"its fit by {decomposer!r} failed: {error}"]
        msg = f"Layer {names[0]!r} cannot be factorised by {decomposer!r} at rank {list(rank)}: {error}"
        raise PlanError(msg) from error
    fitted = [
        with_fields(each, bias=None) if name in subject.inner else each
        for name, each in zip(names, fitted, strict=True)
    ]
    for name, each in zip(names, fitted, strict=True):
        logger.info(
            "Layer %s by %s at rank %s: error %.4f in %.2f s. %s",
            name, decomposer, list(rank), each.output_error, each.seconds, each.solution.status.value,
        )  # fmt: skip
    return fitted


def _replaced(subject: Subject, fitted: Mapping[str, Fitted], inplace: bool) -> nn.Module:
    """The network with chains in the place of the layers that were fitted."""
    compressed = subject.model if inplace else copied(subject.model)
    for name, each in fitted.items():
        old, adapter = compressed.get_submodule(name), subject.survey.layers[name].adapter
        chain = make_chain(old, adapter, each.factorization, each.bias)
        if old is compressed:
            compressed = chain
        replace(compressed, old, chain)
    return compressed


def _repair(
    problems: Problems,
    original: nn.Module,
    compressed: nn.Module,
    templates: Mapping[str, nn.Module],
    chains: Mapping[str, tuple[str, Rank]],
) -> Errors:
    """Match the moments of the chains' outputs, then distil; the errors of the distilled blocks."""
    subject, source, settings = problems.subject, problems.source, problems.subject.settings
    names, layers = list(chains), {name: subject.survey.layers[name] for name in chains}
    adapters = subject.registry.registered(LAYER_ADAPTERS)
    outputs = source.outputs(subject, problems.seen, names)
    matched = {name: layer for name, layer in layers.items() if name not in subject.inner}
    match_moments(compressed, templates, matched, outputs, source.batches, adapters, subject.steps)
    if settings.repair != "distill":
        return {}
    small = [name for name in names if next(compressed.get_submodule(name).parameters()).dtype.itemsize < 4]
    if small:
        logger.warning("Distillation is skipped: it needs float32, but %s is not; moments are matched.", small[0])
        return {}
    wanted = settings.distillation
    kernels = [layer.adapter.kernel(templates[name]) for name, layer in layers.items()]
    slack = settings.stability.slack if settings.stability else None
    chosen = [chains, slack, settings.seed, wanted.steps, wanted.network_steps]
    if settings.output != AUTO:
        chosen.append(written_described(settings.output))
    key = digest([kernels, source.batches]) + json.dumps(chosen)
    return distill(
        original,
        compressed,
        names,
        source.batches,
        adapters=adapters,
        iterations=wanted.steps,
        network_iterations=wanted.network_steps,
        seed=settings.seed,
        notebook=Notebook(wanted.checkpoint, compressed, names, key),
        steps=subject.steps,
        outputs=Outputs.of(original, settings.output),
    )
