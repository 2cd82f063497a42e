# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A budget that the whole network must meet by measurement, not by the sum over its layers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from lowrank_plugin.errors import BudgetError
from lowrank_plugin.ranks.allocation import Candidates, Chosen

logger = logging.getLogger(__name__)

STEPS = 6
TOLERANCE = 0.03
"""How far below its budget, as a share of it, a network may measure before a larger one is tried."""


@dataclass(frozen=True)
class Trial:
    """Choices, and what the whole network with them measures.

    :param limit: the share of the predicted cost that the choices were allowed.
    :param chosen: the choices.
    :param whole: what the network measures before and after.
    """

    limit: float
    chosen: Chosen
    whole: list[float]

    @property
    def share(self) -> float:
        """What remains, as measured."""
        return self.whole[1] / self.whole[0]


def meet(candidates: Candidates, share: float, measure: Callable[[Chosen], list[float]]) -> Trial:
    """Find choices with which the whole network measures a share of what it did, or a little less.

    What is allowed by prediction is corrected by what was measured, by regula falsi, until the measured share is within
    3 % below the budget or six networks were measured.

    :param candidates: what there is to choose from.
    :param share: above 0.
    :param measure: called with choices; returns what the whole network measures before and after.
    :return: of the trials that meet the budget the one with most left.
    :raises BudgetError: where none of them does.
    """
    least = candidates.least * (1 + 1e-9)
    limit, trials = max(share, least), list[Trial]()
    for _ in range(STEPS):
        chosen = candidates.within_share(limit)
        if any(each.chosen == chosen for each in trials):
            break
        trials.append(Trial(limit, chosen, measure(chosen)))
        logger.info("%.3f predicted, %.3f measured, where %g is allowed.", limit, trials[-1].share, share)
        if share * (1 - TOLERANCE) <= trials[-1].share <= share:
            break
        limit = min(max(_next(trials, share * (1 - TOLERANCE / 2)), least), 1.0)
    within = [each for each in trials if each.share <= share]
    if not within:
        reached = min(each.share for each in trials)
        msg = (
            f"A budget of {share:g} cannot be met; the least that was measured for the whole network is {reached:.3f}. "
            "Raise the budget, allow more decomposers or lower rank_multiple."
        )
        raise BudgetError(msg)
    return max(within, key=lambda each: each.share)


def _next(trials: list[Trial], aim: float) -> float:
    """The limit that should measure ``aim``: between the trials on both sides, or as far on as the last one missed."""
    below = max((each for each in trials if each.share <= aim), key=lambda each: each.limit, default=None)
    above = min((each for each in trials if each.share > aim), key=lambda each: each.limit, default=None)
    if below is None or above is None or above.limit <= below.limit:
        return trials[-1].limit + aim - trials[-1].share
    way = (aim - below.share) / (above.share - below.share)
    return below.limit + min(max(way, 0.1), 0.9) * (above.limit - below.limit)
