# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""CP decomposition: 1x1, depthwise, 1x1, in every norm, with the sensitivity bounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_hooks import KernelShape, NormKind, Point, Problem, Rank, Solution, StageShape, Status
from lowrank_plugin.solvers.cp.blocks import Objective, largest_block
from lowrank_plugin.solvers.cp.course import Course, histories
from lowrank_plugin.solvers.cp.curve import extrapolated, interpolated
from lowrank_plugin.solvers.cp.diagnosis import diagnose, is_degenerate
from lowrank_plugin.solvers.cp.sensitivity import Factors
from lowrank_plugin.solvers.cp.stable import SweepState, least_squares, stabilise
from lowrank_plugin.solvers.cp.start import Prepared, prepare, slices, start, unwhiten, whitened
from lowrank_plugin.solvers.parts.checks import check_alike
from lowrank_plugin.solvers.parts.driver import Outcome
from lowrank_plugin.solvers.parts.fit import Fit, each_finite, fitted_together
from lowrank_plugin.solvers.parts.linear_algebra import row_products
from lowrank_plugin.solvers.parts.ranks import check_rank, rank_grid

LEAST_WEIGHTED = 3
"""Sweeps under a covariance that are always made, unless fewer are allowed."""

_OFFERED = 16
"""About how many ranks are on a curve."""


@dataclass(frozen=True)
class Cpd:
    r"""1x1 into R channels, a depthwise kxk convolution, 1x1 out of them; rank (R,).

    The kernel [T, S, K], its taps as one mode, becomes a sum of R rank-one terms. With a slack (the default) the
    sensitivity is minimised within that share of the best residual found ([1]), in the norm of the problem; without,
    it is plain least squares, which on most kernels diverges slowly into huge components that cancel each other and
    is then reported as degenerate. In a covariance norm it is the distribution-aware CPD of [2].

    Differences from the papers: see :class:`lowrank_plugin.solvers.cp.stable.AcceleratedSweeps`. [2] has no bound on
    the sensitivity and [1] no covariance; [2] splits the taps into two modes, [1] sometimes. The start is neither
    random nor an HOSVD but the strongest rank-one terms of the slices along the principal taps, and in a covariance
    norm that of the kernel whitened by the mean channel and tap covariances.

    It is a local optimiser, and no best decomposition need exist: what it returns depends on the number of sweeps.

    [1] Phan et al., "Stable Low-Rank Tensor Decomposition for Compression of Convolutional Neural Network", ECCV 2020,
    arXiv:2008.05441.
    [2] Kalle et al., "Distribution-Aware Tensor Decomposition for Compression of Convolutional Neural Networks",
    NeurIPS 2025, arXiv:2511.04494, eq. 30.

    >>> problem = Problem(torch.ones(1, 6, 4, 3, 3))
    >>> solution = Cpd().fit(problem, (1,))
    >>> [stage.weight.shape for stage in solution.value.stages]
    [torch.Size([1, 1, 4, 1, 1]), torch.Size([1, 1, 1, 3, 3]), torch.Size([1, 6, 1, 1, 1])]
    >>> round(solution.statistics["component_energy"], 2)
    1.0

    :param max_sweeps: the most least squares sweeps in a plain norm.
    :param rtol: relative decrease of the squared error in a sweep that counts as progress.
    :param stable_sweeps: the most sweeps that lower the sensitivity, in a plain norm.
    :param stable_rtol: relative decrease of the sensitivity in a sweep that counts as progress.
    :param weighted_sweeps: the most sweeps of either kind under a covariance, where one costs several times as much.
    :param weighted_work: arithmetic operations that more than three of those sweeps may take: for large kernels the
        sweeps before them, on the whitened kernel, must do.
    :param whitened_sweeps: least squares sweeps on the whitened kernel that come before them.
    :param input_steps: conjugate-gradient steps a sweep for the inputs (covariance norms only).
    :param tap_steps: the same for the taps.
    :param spread: size of the random part of the starting taps.
    :param curve_points: how many ranks of the curve are solved for, each about half of the next; the others are
        interpolated.
    :param curve_sweeps: sweeps for the first of them; half as many for the others, which start from the one before.
    """

    max_sweeps: int = 80
    rtol: float = 1e-5
    stable_sweeps: int = 40
    stable_rtol: float = 2e-3
    weighted_sweeps: int = 25
    weighted_work: float = 1.5e11
    whitened_sweeps: int = 40
    input_steps: int = 2
    tap_steps: int = 1
    spread: float = 0.5
    curve_points: int = 4
    curve_sweeps: int = 16

    def structure(self, shape: KernelShape, rank: Rank) -> tuple[StageShape, ...]:
        """See :meth:`lowrank_hooks.Decomposer.structure`."""
        width = lower(shape, rank)
        ones = (1,) * len(shape.kernel_size)
        return (
            StageShape(width, shape.in_channels, ones),
            StageShape(width, width, shape.kernel_size, groups=width),
            StageShape(shape.out_channels, width, ones),
        )

    def curve(self, problem: Problem) -> Sequence[Point]:
        """Errors expected of fits at ranks up to the one at which the chain has three quarters of the weights.

        A few ranks are solved for with fewer sweeps than a fit makes; what the other sweeps would still gain is
        extrapolated, and the ranks between are interpolated. On trained kernels fits end between a tenth below the
        error predicted, the slack included, and a tenth above.

        See :meth:`lowrank_hooks.Decomposer.curve`.
        """
        return self.curves([problem])[0]

    def curves(self, problems: Sequence[Problem]) -> list[Sequence[Point]]:
        """See :meth:`lowrank_hooks.BatchDecomposer.curves`."""
        check_alike(problems)
        shape, multiple = problems[0].shape, problems[0].rank_multiple
        if not _has_taps(shape):
            return [[] for _ in problems]
        largest = _largest_offered(shape)
        shares = [largest >> (self.curve_points - 1 - i) for i in range(self.curve_points)]
        solved = sorted({*(max(1, share // multiple * multiple) for share in shares[:-1]), largest})
        ranks = sorted({*solved, *(rank for rank in rank_grid(largest, multiple, _OFFERED) if rank > solved[0])})
        slack = problems[0].slack or 0.0

        def points(errors: Sequence[float]) -> list[Point]:
            return [Point((rank,), min(1.0, interpolated(rank, solved, errors) * (1 + slack))) for rank in ranks]

        return each_finite(
            problems, lambda sound: [points(errors) for errors in self._curve_errors(sound, solved)], list
        )

    def _curve_errors(self, problems: Sequence[Problem], ranks: Sequence[int]) -> list[list[float]]:
        """Relative errors of each problem at ascending ranks, each solved from the components of the one before."""
        prepared = prepare(problems, self.input_steps, self.tap_steps)
        totals = prepared.of_each(prepared.objective.energy).tolist()
        white = whitened(prepared)
        objective = _plain_objective(white)
        terms = slices(white, ranks[-1])
        factors, sweeps = None, self.curve_sweeps
        curves: list[list[float]] = [[1.0 if total > 0 else 0.0] for total in totals]
        full = self.max_sweeps if prepared.objective.plain else self.whitened_sweeps
        for rank in ranks:
            begin = start(terms, rank, problems[0].generator(), self.spread)
            if factors is not None:
                parts = zip(factors, begin, strict=True)
                begin = Factors(*(torch.cat([old, new[:, :, old.shape[2] :]], dim=2) for old, new in parts))
                sweeps = -(-self.curve_sweeps // 2)
            outcome = least_squares(objective, begin, sweeps, self.rtol)
            factors = outcome.state.factors
            errors = prepared.of_each(prepared.objective.refit(unwhiten(prepared, factors)).error).tolist()
            gains = [extrapolated(history, sweeps, full) for history in prepared.of_each(outcome.history).mT.tolist()]
            for curve, total, error, gain in zip(curves, totals, errors, gains, strict=True):
                curve.append(min(curve[-1], math.sqrt(error / total * gain) if total > 0 else 0.0))
        return [curve[1:] for curve in curves]

    def fit(self, problem: Problem, rank: Rank) -> Solution:
        """See :meth:`lowrank_hooks.Decomposer.fit`."""
        return self.fits([problem], rank)[0]

    def fits(self, problems: Sequence[Problem], rank: Rank) -> list[Solution]:
        """See :meth:`lowrank_hooks.BatchDecomposer.fits`."""
        return fitted_together(problems, rank, lower, self._solve, self.peak_bytes)

    def _solve(self, problems: Sequence[Problem], rank: int) -> list[Fit]:
        prepared = prepare(problems, self.input_steps, self.tap_steps)
        factors, courses = self._factors(prepared, problems[0], rank)
        energies = prepared.of_each(prepared.objective.energy).tolist()
        fits = []
        for index, (course, energy) in enumerate(zip(courses, energies, strict=True)):
            part, scale = prepared.part(index), prepared.scales[index]
            statistics = diagnose(Factors(*(factor[part] for factor in factors)), prepared.kernel[part], scale)
            degenerate = course.before is None and is_degenerate(statistics)
            status = Status.DEGENERATE if degenerate else course.status
            own = {**statistics, **(course.before or {}), "iterations": course.sweeps}
            chain = prepared.chain(factors, index, problems[0].shape.kernel_size)
            fits.append(Fit(chain, status, course.errors, energy * scale**2, own))
        return fits

    def peak_bytes(self, shape: KernelShape, rank: Rank, kind: NormKind, itemsize: int) -> int:
        """See :meth:`lowrank_hooks.PeakMemory.peak_bytes`."""
        width = lower(shape, rank)
        outputs, inputs, taps = shape.out_channels, shape.in_channels, shape.taps
        columns = inputs * taps
        kernel, mixed = itemsize * outputs * columns, itemsize * width * columns
        factors, square = 8 * width * (outputs + inputs + taps), 8 * width**2
        weighted, turned = kind.weighted, kind.turned
        # The kernel times the covariance and rotated; the roots of both sides.
        held = kernel * (weighted + turned) + 24 * (weighted * inputs**2 + turned * outputs**2)
        slices = itemsize * taps * min(outputs, inputs) * (outputs + inputs)
        begin = kernel * (2 + weighted) + slices + 2 * factors
        inner = 2 * mixed + (2 + weighted) * square + 5 * factors + 8 * width * inputs * (11 if weighted else 2) // 2
        inner += 3 * weighted * mixed * min(width, largest_block(width)) // (2 * width)
        outer = weighted * mixed + 51 * square // 10 + 3 * factors + 8 * width * outputs * (7 if turned else 4)
        return shape.groups * 27 * (held + max(begin, inner, outer)) // 25

    def _factors(self, prepared: Prepared, problem: Problem, rank: int) -> tuple[Factors, list[Course]]:
        """Factors in the solver's coordinates, and how each of the problems got there."""
        objective = prepared.objective
        totals = prepared.of_each(objective.energy).tolist()
        if objective.plain:
            outcome, swept = self._plain(prepared.kernel, rank, problem, self.max_sweeps), [0] * len(totals)
        else:
            begin, swept = self._begin(prepared, rank, problem)
            outcome = least_squares(objective, begin, self._sweeps(prepared, rank), self.rtol)
            del begin
        courses = [
            Course.of_least_squares(history, total, before)
            for history, total, before in zip(histories(prepared, outcome.history), totals, swept, strict=True)
        ]
        best, best_error = outcome.state.factors, outcome.state.error
        if problem.slack is None or not any(totals):
            return best, courses
        del outcome
        for index, (course, total) in enumerate(zip(courses, totals, strict=True)):
            courses[index] = course.before_trading(best, prepared, index) if total > 0 else course
        sweeps = self.stable_sweeps if objective.covariance is None else self._sweeps(prepared, rank)
        traded = stabilise(objective, best, best_error, problem.slack, sweeps, self.stable_rtol)
        pairs = zip(courses, histories(prepared, traded.history), strict=True)
        return traded.state.factors, [course.after_trading(history) for course, history in pairs]

    def _begin(self, prepared: Prepared, rank: int, problem: Problem) -> tuple[Factors, list[int]]:
        """Factors from the whitened kernels, and how many sweeps those of each problem took."""
        outcome = self._plain(whitened(prepared), rank, problem, self.whitened_sweeps)
        swept = [len(history) - 1 for history in histories(prepared, outcome.history)]
        return unwhiten(prepared, outcome.state.factors), swept

    def _sweeps(self, prepared: Prepared, rank: int) -> int:
        """How many sweeps of either kind the problem's own norm is worth."""
        if prepared.objective.covariance is None:
            return self.weighted_sweeps
        columns = math.prod(prepared.kernel.shape[2:])
        work = 2 * (self.input_steps + self.tap_steps + 2) * prepared.groups * rank * columns**2
        return min(self.weighted_sweeps, max(LEAST_WEIGHTED, int(self.weighted_work / work)))

    def _plain(self, kernel: Tensor, rank: int, problem: Problem, sweeps: int) -> Outcome[SweepState]:
        begin = start(slices(kernel, rank), rank, problem.generator(), self.spread)
        return least_squares(_plain_objective(kernel), begin, sweeps, self.rtol)


def _plain_objective(kernel: Tensor) -> Objective:
    """The squared error of [G, T, S, K] in the plain norm."""
    return Objective(kernel, row_products(kernel, kernel).sum(dim=1))


def lower(shape: KernelShape, rank: Rank) -> int:
    """The rank, checked and lowered to the largest useful one: K min(T, S), with which every kernel is met exactly.

    >>> lower(KernelShape(1, 6, 4, (3, 3)), (100,))
    36

    :param shape: the kernel's sizes.
    :param rank: what was asked for.
    :return: R.
    :raises ValueError: for a rank that is no single positive number, and for kernels without several taps.
    """
    check_rank(rank, 1, "cpd")
    if not _has_taps(shape):
        msg = f"cpd needs a convolution with more than one tap, not a kernel of size {shape.kernel_size}: use svd."
        raise ValueError(msg)
    return min(int(rank[0]), shape.taps * min(shape.out_channels, shape.in_channels))


def _has_taps(shape: KernelShape) -> bool:
    """Whether it is the kernel of a convolution with several taps, which CP has a factor for."""
    return 1 <= len(shape.kernel_size) <= 3 and shape.taps > 1


def _largest_offered(shape: KernelShape) -> int:
    """The rank at which the chain has three quarters of the kernel's weights, at least 1: beyond, little is saved."""
    t, s, k = shape.out_channels, shape.in_channels, shape.taps
    return max(1, min(3 * t * s * k // (4 * (t + s + k)), k * min(t, s)))
