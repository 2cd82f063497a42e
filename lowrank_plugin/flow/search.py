# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The budget ``accuracy_drop``: the smallest network whose measured quality is still good enough."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from lowrank_hooks import Rank, StepEvent
from lowrank_plugin.chains.record import attach
from lowrank_plugin.errors import BudgetError, ConfigurationError, EvaluationError
from lowrank_plugin.flow.choosing import choices_of
from lowrank_plugin.flow.compressing import Compressed, Solved, compress
from lowrank_plugin.flow.meter import Meter
from lowrank_plugin.flow.problems import Problems
from lowrank_plugin.ranks.allocation import Chosen
from lowrank_plugin.ranks.budgets import needs_validation
from lowrank_plugin.ranks.plan import Accuracy, Evaluation, Plan
from lowrank_plugin.settings import Settings
from lowrank_plugin.support import processes
from lowrank_plugin.support.copying import copied

logger = logging.getLogger(__name__)

ValidationFunction = Callable[[nn.Module], float]
"""Called with a model in eval mode, without gradients; returns its quality, higher is better."""

RESOLUTION = 0.02
"""The search ends when the share of the MACs is known this well: at most six networks are evaluated, and one more where
ranks are given by hand."""


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    :param plan: the plan of the network; its ``accuracy`` lists the evaluations.
    :param compressed: the network.
    """

    plan: Plan
    compressed: Compressed


def judge_of(settings: Settings, validation_fn: ValidationFunction | None) -> ValidationFunction | None:
    """The function that judges the networks of a search; None where the settings ask for no search.

    :param settings: what the user asked for.
    :param validation_fn: the function given, or None.
    :raises ConfigurationError: where a function is given without the budget it is for, or the other way round.
    """
    wanted = needs_validation(settings.budget)
    if wanted and not callable(validation_fn):
        msg = (
            'The budget "accuracy_drop" needs a validation_fn: a function that takes a model and returns its quality '
            f"as a number, higher is better. Got {validation_fn!r}."
        )
        raise ConfigurationError(msg)
    if validation_fn is not None and not wanted:
        msg = (
            f"A validation_fn was given, but the budget {settings.budget} makes no use of it. Give the budget "
            '{"accuracy_drop": d}, or leave validation_fn out.'
        )
        raise ConfigurationError(msg)
    return validation_fn


class Search:
    """Bisection on the share of the MACs; curves and fits of layers at one rank are computed once.

    :param problems: the problems of the layers.
    :param validation_fn: it is given copies, so that whatever it does to a model is not kept.
    :param meter: measures the network that is found, where a runtime is given.
    :raises EvaluationError: where ``validation_fn`` fails on the original.
    """

    def __init__(self, problems: Problems, validation_fn: ValidationFunction, meter: Meter | None) -> None:
        self._validation_fn, self._meter = validation_fn, meter
        self._subject, self._original = problems.subject, math.nan
        self._evaluations: list[Evaluation] = []
        self._tried: dict[tuple[tuple[str, str, Rank], ...], bool] = {}
        self._solved: Solved = {}
        self._best: Found | None = None
        self._original = self._quality(self._subject.model)
        self._choice = choices_of(problems, meter)
        self._allowed = self._choice.budget.drop or 0.0

    def run(self) -> Found:
        """Find the smallest network whose quality is less than the original's by at most what is allowed.

        Where none of those tried is good enough, that is the original itself, and a warning says so.

        :raises EvaluationError: where ``validation_fn`` fails; carries the best network found until then.
        :raises BudgetError: where the ranks given by hand alone cost more than is allowed.
        """
        candidates = self._choice.candidates
        mildest = candidates.by_hand()
        if candidates.hand and not self._accepts(mildest):
            msg = (
                f"The ranks given by hand alone lower the quality by {self._evaluations[-1].drop:.4g}, but only "
                f"{self._allowed:g} is allowed. Raise those ranks or allow a larger accuracy_drop."
            )
            raise BudgetError(msg)
        low, high = candidates.least, candidates.share(mildest)
        while high - low > RESOLUTION:
            share = (low + high) / 2
            chosen = self._within(share)
            if chosen is not None and self._accepts(chosen):
                high = min(share, self._choice.candidates.share(chosen))
            else:
                low = share
        found = self._outcome() or self._unchanged()
        if self._meter is None:
            return found
        return Found(processes.agreed(self._meter.predicted(found.plan)), found.compressed)

    def _within(self, share: float) -> Chosen | None:
        try:
            return self._choice.candidates.within_share(share)
        except BudgetError:
            return None

    def _accepts(self, chosen: Chosen) -> bool:
        key = tuple((name, each.decomposer, each.rank) for name, each in chosen.items())
        if key in self._tried:
            return self._tried[key]
        compressed = self.compress(self._choice.write(chosen))
        value = self._quality(compressed.model)
        before, after = compressed.record.costs["macs"]
        tried = Evaluation(after / before, value, self._original - value)
        self._evaluations.append(tried)
        logger.info(
            "Evaluation %d: %.3f of the MACs, quality %.6g, a drop of %.4g where %g is allowed.",
            len(self._evaluations), tried.macs, tried.value, tried.drop, self._allowed,
        )  # fmt: skip
        self._subject.steps.observe(StepEvent("evaluate", len(self._evaluations)))
        self._tried[key] = tried.drop <= self._allowed
        if self._tried[key]:
            plan = self._choice.write({name: chosen[name] for name in self._choice.candidates.choices})
            self._best = Found(plan.with_accuracy(self._tries(tried)), compressed)
        return self._tried[key]

    def compress(self, plan: Plan, *, inplace: bool = False) -> Compressed:
        """Compress as a plan of this search says, without solving again what was solved.

        :param plan: the plan.
        :param inplace: change the model itself.
        """
        compressed = compress(self._choice.problems, plan, inplace=inplace, solved=self._solved)
        # a layer that could not be solved on the way is left alone from then on
        self._choice = self._choice.without(compressed.refusals)
        return compressed

    def _quality(self, model: nn.Module) -> float:
        """The same in all processes, so that their searches take the same way."""
        return processes.agreed(processes.together(partial(self._measured, model)))

    def _measured(self, model: nn.Module) -> float:
        probe = copied(model).eval()
        try:
            with torch.no_grad():
                value = self._validation_fn(probe)
        except Exception as error:
            reason = f"it raised {type(error).__name__}: {error}"
            raise self._failure(reason) from error
        try:
            number = math.nan if isinstance(value, str | bool) else float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            reason = f"it returned {value!r}, which is not a number"
            raise self._failure(reason) from error
        if not math.isfinite(number):
            reason = f"it returned {value!r}, which is not a finite number"
            raise self._failure(reason)
        return number

    def _failure(self, reason: str) -> EvaluationError:
        which = "the original" if math.isnan(self._original) else f"network {len(self._evaluations) + 1} of the search"
        msg = f"validation_fn failed on {which}: {reason}. The model is as it was."
        best = self._outcome()
        if best is None:
            return EvaluationError(msg)
        accuracy = best.plan.accuracy
        if accuracy is not None and (chosen := accuracy.chosen) is not None:
            msg += (
                f" The smallest good network until then ({chosen.macs:.3f} of the MACs, a drop of {chosen.drop:.4g}) "
                "is in this error's attribute compressed, its plan in plan."
            )
        return EvaluationError(msg, best.plan.to_json(), best.compressed.model)

    def _outcome(self) -> Found | None:
        """The best so far, with everything that was tried written into its plan and its record."""
        if self._best is None or self._best.plan.accuracy is None:
            return None
        accuracy = self._tries(self._best.plan.accuracy.chosen)
        compressed = self._best.compressed
        record = compressed.record.with_accuracy(accuracy)
        attach(compressed.model, record)
        return Found(self._best.plan.with_accuracy(accuracy), replace(compressed, record=record))

    def _unchanged(self) -> Found:
        logger.warning(
            "No smaller network that was tried stays within an accuracy_drop of %g: all layers stay dense.",
            self._allowed,
        )
        plan = self._choice.write(self._choice.candidates.by_hand())
        reason = "no smaller network that was tried stays within the accuracy drop"
        plan = plan.with_reasons(reason).with_accuracy(self._tries(None))
        return Found(plan, self.compress(plan))

    def _tries(self, chosen: Evaluation | None) -> Accuracy:
        return Accuracy(self._original, self._allowed, tuple(self._evaluations), chosen)
