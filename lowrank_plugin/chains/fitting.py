# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""From a chosen rank to factors and a bias, in the dtype of the layer."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowrank_hooks import Decomposer, Factorization, Problem, Rank, Solution
from lowrank_plugin.solvers import batching
from lowrank_plugin.statistics.problems import as_measured, corrected
from lowrank_plugin.statistics.vectors import Inputs


@dataclass(frozen=True)
class Fitted:
    """A layer's factors, ready to be put in place.

    :param factorization: the factors in float32 or float64; None where the fit failed.
    :param bias: the corrected bias [G*T]; None where the layer has none and needs none.
    :param solution: the solver's answer.
    :param output_error: relative error of the layer's output on the calibration data, or of the kernel in the
        Frobenius norm where there is none.
    :param seconds: time the fit took; of layers solved together, each one's share.
    """

    factorization: Factorization | None
    bias: Tensor | None
    solution: Solution
    output_error: float
    seconds: float


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
        fitted.append(Fitted(chain, bias, solution, error, 0.0))
    seconds = (time.perf_counter() - start) / len(fitted)
    return [replace(each, seconds=seconds) for each in fitted]


def usable(fitted: Mapping[str, Fitted]) -> dict[str, Fitted]:
    """Those that have finite factors."""
    return {
        name: each
        for name, each in fitted.items()
        if each.factorization is not None
        and all(bool(torch.isfinite(stage.weight).all()) for stage in each.factorization.stages)
    }
