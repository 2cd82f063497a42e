# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The questions that decomposers are asked about a model's layers, made when they are needed."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lowrank_hooks import Problem
from lowrank_plugin.flow.sources import Seen, Source
from lowrank_plugin.flow.subject import Subject, refuse
from lowrank_plugin.solvers import batching
from lowrank_plugin.statistics.norms import effective_rank
from lowrank_plugin.statistics.passes import GIGABYTE
from lowrank_plugin.statistics.problems import make_problem, norm_entries, solver_dtype
from lowrank_plugin.statistics.vectors import Inputs
from lowrank_plugin.support import processes

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAKING = 2
"""Copies of a layer's covariance, in float64, that are there for a moment while its problem is made: of the products
of correlated maps put together, and one for a sum or a square."""


class Problems:
    """A problem for every layer that can be compressed.

    Those made last are kept, as many as ``memory_gb`` leaves room for beside the statistics; the others are made again.

    :param subject: the model, without the layers that were refused.
    :param source: where what follows is known from.
    :param seen: what was seen of its layers.
    :param gradients: second moments of the gradients of their outputs, where the norm needs them.
    """

    def __init__(self, subject: Subject, source: Source, seen: Seen, gradients: Mapping[str, Tensor]) -> None:
        self.subject, self.source, self.seen = subject, source, seen
        self.effective_ranks: dict[str, float] = {}
        self._gradients = gradients
        self._kept: OrderedDict[str, Problem] = OrderedDict()

    def __getitem__(self, name: str) -> Problem:
        """The problem of a layer."""
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        layer, module = self.subject.survey.layers[name], self.subject.model.get_submodule(name)
        inputs, settings = self.inputs(name), self.subject.settings
        problem = make_problem(layer, module, inputs, self._gradients.get(name), settings)
        if inputs is not None:
            self.effective_ranks[name] = effective_rank(problem.norm)
        self._kept[name] = problem
        while len(self._kept) > 1 and sum(map(problem_bytes, self._kept.values())) > self.room:
            self._kept.popitem(last=False)
        return problem

    def inputs(self, name: str) -> Inputs | None:
        """What was seen of a layer's inputs; None in the plain norm."""
        return self.seen.observed[name].inputs if self.subject.norm.weighted else None

    def without(self, refusals: Mapping[str, str]) -> Problems:
        """The same for fewer layers.

        :param refusals: those that stay dense, and why.
        """
        if not refusals:
            return self
        fewer = Problems(self.subject.without(refusals), self.source, self.seen, self._gradients)
        fewer._kept = OrderedDict((name, each) for name, each in self._kept.items() if name not in refusals)
        fewer.effective_ranks = self.effective_ranks
        return fewer

    @property
    def held(self) -> int:
        """Bytes of the statistics that are kept in memory; those of several passes are in files."""
        if self.seen.memory.get("passes", 1) > 1:
            return 0
        return sum(each.patches.nbytes for each in self.seen.observed.values())

    @property
    def room(self) -> int:
        """Bytes of the problems that may be kept."""
        return max(0, int(self.subject.settings.calibration.memory_gb * GIGABYTE) - self.held - self.making)

    @property
    def making(self) -> int:
        """Bytes that are needed for a moment while the largest problem is made."""
        return MAKING * max((8 * self._entries(name) for name in self._looked_at), default=0)

    def memory(self) -> dict[str, int]:
        """What statistics and problems need at the most, and in how many passes; empty where nothing was collected."""
        if not self.seen.memory:
            return {}
        needs = [self._entries(name) * self._solved_in(name).itemsize for name in self._looked_at]
        kept = max(min(sum(needs), self.room), max(needs, default=0))
        return {**self.seen.memory, "peak": max(self.seen.memory["peak"], self.held + kept + self.making)}

    @property
    def _looked_at(self) -> list[str]:
        """Layers that there may be a problem for: all in the plain norm, those that were seen in the others."""
        seen, weighted = self.seen.observed, self.subject.norm.weighted
        return [name for name in self.subject.survey.layers if not weighted or name in seen]

    def _solved_in(self, name: str) -> torch.dtype:
        return solver_dtype(self.subject.survey.layers[name].adapter.kernel(self.subject.model.get_submodule(name)))

    def _entries(self, name: str) -> int:
        """Numbers in a layer's kernel and in its norm, known before the problem is made."""
        shape, norm = self.subject.survey.layers[name].shape, self.subject.norm
        inputs = self.seen.observed[name].patches if norm.weighted else None
        return shape.parameters + norm_entries(shape, inputs, norm)

    def each(
        self,
        step: str,
        description: str,
        names: Sequence[str],
        work: Callable[[Sequence[str]], Sequence[T]],
        kind: Callable[[str], Hashable] = lambda name: name,
    ) -> dict[str, T]:
        """Do some work on each layer: on layers of one shape, dtype and kind together, in each process on its share.

        :param step: the name of the step, see :class:`lowrank_hooks.StepEvent`.
        :param description: for the bar.
        :param names: the layers.
        :param work: called with the names of layers that are alike; returns a result for each.
        :param kind: the same for layers that may be worked on together.
        """

        def like(name: str) -> Hashable:
            weight = next(self.subject.model.get_submodule(name).parameters())
            return kind(name), self.subject.survey.layers[name].shape, weight.dtype, weight.device

        groups = {group[0]: group for group in batching.batches(names, like, lambda name: 8 * self._entries(name))}

        def run(mine: Sequence[str]) -> dict[str, dict[str, T]]:
            shown = self.subject.steps.groups(step, description, [groups[first] for first in mine])
            return {group[0]: dict(zip(group, work(group), strict=True)) for group in shown}

        parts = processes.divided(run, list(groups)).values()
        found = {name: each for part in parts for name, each in part.items()}
        return {name: found[name] for name in names}


def problem_bytes(problem: Problem) -> int:
    """Bytes of a problem's kernel and norm.

    :param problem: the problem.
    """
    return sum(tensor.nbytes for tensor in (problem.kernel, *problem.norm.tensors))


def look(subject: Subject, source: Source, names: Sequence[str] | None = None) -> Problems:
    """See what layers get and put out, and make the problems of those that are of use.

    :param subject: the model.
    :param source: from where.
    :param names: the layers; None for all.
    :raises PlanError: where a layer is of no use and ``on_failure`` is ``"raise"``.
    """
    names = list(subject.survey.layers) if names is None else list(names)
    seen = source.look(subject, names)
    refuse(seen.refusals, subject.settings.on_failure)
    subject = subject.without(seen.refusals)
    names = [name for name in names if name in subject.survey.layers]
    gradients = source.gradients(subject, names) if subject.norm.turned else {}
    return Problems(subject, source, seen, gradients)
