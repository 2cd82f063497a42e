# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The budget ``accuracy_drop``: the smallest network whose measured quality is still good enough."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from lowrank_hooks import Rank, StepEvent
from lowrank_plugin.chains.record import RECORD
from lowrank_plugin.errors import BudgetError, ConfigurationError, EvaluationError
from lowrank_plugin.flow.flow import Flow
from lowrank_plugin.plugins import manager
from lowrank_plugin.ranks.allocation import Candidates, Chosen
from lowrank_plugin.settings import Settings
from lowrank_plugin.support import processes

logger = logging.getLogger("lowrank_plugin")

ValidationFunction = Callable[[nn.Module], float]
"""Called with a model in eval mode, without gradients; returns its quality, higher is better."""

RESOLUTION = 0.02
"""The search ends when the share of the MACs is known this well: at most six networks are evaluated, and one more where
ranks are given by hand."""


@dataclass(frozen=True)
class Evaluation:
    """One network that was tried.

    :param macs: the share of the MACs that it has.
    :param value: what ``validation_fn`` returned for it.
    :param drop: by how much that is less than for the original.
    """

    macs: float
    value: float
    drop: float


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    :param plan: the plan of the network; its key ``"accuracy"`` lists the evaluations.
    :param compressed: the network.
    """

    plan: dict[str, Any]
    compressed: nn.Module


def judge_of(settings: Settings, validation_fn: ValidationFunction | None) -> ValidationFunction | None:
    """The function that judges the networks of a search; None where the settings ask for no search.

    :param settings: what the user asked for.
    :param validation_fn: the function given, or None.
    :raises ConfigurationError: where a function is given without the budget it is for, or the other way round.
    """
    wanted = "accuracy_drop" in (settings.budget or {})
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
    """Bisection on the share of the MACs; statistics, curves and fits of layers at one rank are computed once.

    :param flow: the model on its way; nothing was chosen yet.
    :param validation_fn: it is given copies, so that whatever it does to a model is not kept.
    """

    def __init__(self, flow: Flow, validation_fn: ValidationFunction) -> None:
        self._flow, self._validation_fn = flow, validation_fn
        self._allowed = (flow.settings.budget or {})["accuracy_drop"]
        self._original = math.nan
        self._evaluations: list[Evaluation] = []
        self._tried: dict[tuple[tuple[str, str, Rank], ...], bool] = {}
        self._best: Found | None = None

    def run(self) -> Found:
        """Find the smallest network whose quality is less than the original's by at most what is allowed.

        Where none of those tried is good enough, that is the original itself, and a warning says so.

        :raises EvaluationError: where ``validation_fn`` fails; carries the best network found until then.
        :raises BudgetError: where the ranks given by hand alone cost more than is allowed.
        """
        self._original = self._agreed_quality(self._flow.model)
        candidates = self._flow.candidates()
        mildest = candidates.by_hand()
        if candidates.hand and not self._accepts(candidates, mildest):
            msg = (
                f"The ranks given by hand alone lower the quality by {self._evaluations[-1].drop:.4g}, but only "
                f"{self._allowed:g} is allowed. Raise those ranks or allow a larger accuracy_drop."
            )
            raise BudgetError(msg)
        low, high = candidates.least, candidates.share(mildest)
        while high - low > RESOLUTION:
            # a layer that could not be solved on the way is left alone from then on
            candidates = candidates.only(self._flow.survey.layers)
            share = (low + high) / 2
            chosen = self._within(candidates, share)
            if chosen is not None and self._accepts(candidates, chosen):
                high = min(share, candidates.share(chosen))
            else:
                low = share
        found = self._outcome() or self._unchanged(candidates)
        return Found(self._flow.predicted(found.plan), found.compressed)

    def _within(self, candidates: Candidates, share: float) -> Chosen | None:
        try:
            return candidates.within_share(share)
        except BudgetError:
            return None

    def _accepts(self, candidates: Candidates, chosen: Chosen) -> bool:
        key = tuple((name, each.decomposer, each.rank) for name, each in chosen.items())
        if key in self._tried:
            return self._tried[key]
        compressed = self._flow.compress(self._flow.write(candidates, chosen), inplace=False)
        value = self._agreed_quality(compressed)
        before, after = getattr(compressed, RECORD)["model"]["macs"]
        tried = Evaluation(after / before, value, self._original - value)
        self._evaluations.append(tried)
        logger.info(
            "Evaluation %d: %.3f of the MACs, quality %.6g, a drop of %.4g where %g is allowed.",
            len(self._evaluations), tried.macs, tried.value, tried.drop, self._allowed,
        )  # fmt: skip
        manager().hook.lowrank_step(event=StepEvent("evaluate", len(self._evaluations)))
        self._tried[key] = tried.drop <= self._allowed
        if self._tried[key]:
            left = candidates.only(self._flow.survey.layers)
            plan = self._flow.write(left, {name: chosen[name] for name in left.proposals})
            self._best = Found({**plan, "accuracy": {"chosen": asdict(tried)}}, compressed)
        return self._tried[key]

    def _agreed_quality(self, model: nn.Module) -> float:
        """The same in all processes, so that their searches take the same way."""
        return processes.agreed(processes.together(partial(self._quality, model)))

    def _quality(self, model: nn.Module) -> float:
        return processes.agreed(processes.together(lambda: self._measured(model)))

    def _measured(self, model: nn.Module) -> float:
        probe = copy.deepcopy(model).eval()
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
        chosen = best.plan["accuracy"]["chosen"]
        msg += (
            f" The smallest good network until then ({chosen['macs']:.3f} of the MACs, a drop of {chosen['drop']:.4g}) "
            "is in this error's attribute compressed, its plan in plan."
        )
        return EvaluationError(msg, best.plan, best.compressed)

    def _outcome(self) -> Found | None:
        """The best so far, with everything that was tried written into its plan and its record."""
        if self._best is None:
            return None
        accuracy = {**self._tries(), **self._best.plan["accuracy"]}
        record = {**getattr(self._best.compressed, RECORD), "accuracy": accuracy}
        setattr(self._best.compressed, RECORD, record)
        return Found({**self._best.plan, "accuracy": accuracy}, self._best.compressed)

    def _unchanged(self, candidates: Candidates) -> Found:
        logger.warning(
            "No smaller network that was tried stays within an accuracy_drop of %g: all layers stay dense.",
            self._allowed,
        )
        candidates = candidates.only(self._flow.survey.layers)
        plan = self._flow.write(candidates, candidates.by_hand())
        for entry in plan["layers"].values():
            entry["reason"] = "no smaller network that was tried stays within the accuracy drop"
        plan["accuracy"] = {**self._tries(), "chosen": None}
        return Found(plan, self._flow.compress(plan, inplace=False))

    def _tries(self) -> dict[str, Any]:
        return {
            "original": self._original,
            "allowed_drop": self._allowed,
            "evaluations": [asdict(each) for each in self._evaluations],
        }
