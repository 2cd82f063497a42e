# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""From a chosen rank to factors and a bias, in the dtype of the layer."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowrank_hooks import Decomposer, Factorization, Problem, Rank, Solution
from lowrank_plugin.errors import LowRankError
from lowrank_plugin.solvers import batching
from lowrank_plugin.statistics.problems import as_measured, corrected
from lowrank_plugin.statistics.vectors import Inputs


@dataclass(frozen=True)
class Fitted:
    """A solver's answer for a layer, ready to be put in place where it is usable.

    :param solution: the answer; its value, the factors in float32 or float64, is None where the fit failed.
    :param bias: the corrected bias [G*T]; None where the layer has none and needs none.
    :param output_error: relative error of the layer's output on the calibration data, or of the kernel in the
        Frobenius norm where there is none.
    :param seconds: time the fit took; of layers solved together, each one's share.
    """

    solution: Solution
    bias: Tensor | None
    output_error: float
    seconds: float

    @property
    def is_usable(self) -> bool:
        """Whether there are factors, all of them finite."""
        chain = self.solution.value
        return chain is not None and all(bool(torch.isfinite(stage.weight).all()) for stage in chain.stages)

    @property
    def factorization(self) -> Factorization:
        """The factors.

        :raises LowRankError: where the fit failed.
        """
        if self.solution.value is None:
            msg = f"A layer has no factors, its fit failed: {self.solution.status.value}"
            raise LowRankError(msg)
        return self.solution.value


def fit(
    problems: Sequence[Problem],
    decomposer: Decomposer,
    rank: Rank,
    biases: Sequence[Tensor | None],
    moments: Sequence[Inputs | None],
) -> list[Fitted]:
    """Solve for the factors of layers that are alike, and correct their biases.

    With the centred covariance the best bias is exactly ``b + (W - W~) mu``, which leaves the mean of the output
    unchanged.

    >>> from lowrank_hooks import Norm
    >>> from lowrank_plugin.solvers import Svd
    >>> problem = Problem(torch.eye(4).reshape(1, 4, 4), Norm())
    >>> (fitted,) = fit([problem], Svd(), (4,), [None], [None])
    >>> fitted.is_usable, round(fitted.output_error, 4)
    (True, 0.0)

    :param problems: the kernels and the norms.
    :param decomposer: the solver.
    :param rank: the rank of all.
    :param biases: the layers' own [G*T], or None.
    :param moments: the moments of the layers' inputs, or None.
    """
    start = time.perf_counter()
    solutions = batching.solutions(decomposer, problems, rank)
    fitted = []
    for problem, solution, bias, seen in zip(problems, solutions, biases, moments, strict=True):
        chain, error = solution.value, math.nan
        if chain is not None:
            error = as_measured(problem, seen).relative_error(chain)
            bias = corrected(bias, problem, chain, seen)
        fitted.append(Fitted(solution, bias, error, 0.0))
    seconds = (time.perf_counter() - start) / len(fitted)
    return [replace(each, seconds=seconds) for each in fitted]
