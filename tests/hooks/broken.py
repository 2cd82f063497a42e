# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Decomposers with one planted fault each, beside a sound one that they differ from in nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lowrank_hooks import Factorization, KernelShape, Norm, Point, Problem, Rank, Solution, Stage, StageShape, Status
from lowrank_plugin.solvers.svd import Svd


class Sound:
    """Passes every check; the faults are subclasses of it."""

    def __init__(self) -> None:
        self._svd = Svd()

    def structure(self, shape: KernelShape, rank: Rank) -> tuple[StageShape, ...]:
        return self._svd.structure(shape, rank)

    def curve(self, problem: Problem) -> Sequence[Point]:
        return self._svd.curve(problem)

    def fit(self, problem: Problem, rank: Rank) -> Solution:
        solution = self._svd.fit(problem, rank)
        return replace(solution, statistics={"relative_error": solution.statistics.get("relative_error", 0.0)})


def changed(solution: Solution, change: Callable[[torch.Tensor], torch.Tensor]) -> Solution:
    return solution if solution.value is None else replace(solution, value=solution.value.map(change), statistics={})


class EmptyCurve(Sound):
    def curve(self, problem):
        return []


class WrongStructure(Sound):
    def structure(self, shape, rank):
        first, last = super().structure(shape, rank)
        return replace(first, out_channels=first.out_channels + 1), last


class TapsTwice(Sound):
    def structure(self, shape, rank):
        return *super().structure(shape, rank), StageShape(shape.out_channels, shape.out_channels, shape.kernel_size)

    def fit(self, problem, rank):
        solution = super().fit(problem, rank)
        if solution.value is None:
            return solution
        out = problem.shape.out_channels
        extra = torch.zeros(problem.shape.groups, out, out, *problem.shape.kernel_size).to(problem.kernel)
        return replace(solution, value=Factorization((*solution.value.stages, Stage(extra))), statistics={})


class Inexact(Sound):
    def fit(self, problem, rank):
        return changed(super().fit(problem, rank), lambda weight: weight * (1 + 1e-5))


class Flatters(Sound):
    def fit(self, problem, rank):
        solution = super().fit(problem, rank)
        return replace(solution, statistics={"relative_error": 0.5 * solution.statistics["relative_error"]})


class OtherNorm(Sound):
    """Reports its error in the Frobenius norm, whatever it was asked for."""

    def fit(self, problem, rank):
        solution = super().fit(problem, rank)
        if solution.value is None:
            return solution
        plain = replace(problem, norm=Norm())
        return replace(solution, statistics={"relative_error": plain.relative_error(solution.value)})


class OptimisticCurve(Sound):
    def curve(self, problem):
        return [Point(point.rank, 0.8 * point.error) for point in super().curve(problem)]


class PessimisticCurve(Sound):
    def curve(self, problem):
        return [Point(point.rank, 5 * point.error) for point in super().curve(problem)]


class Backwards(Sound):
    """Fits worse, the higher the rank."""

    def curve(self, problem):
        points = list(super().curve(problem))
        return [Point(point.rank, other.error) for point, other in zip(points, reversed(points), strict=True)]

    def fit(self, problem, rank):
        solution = super().fit(problem, rank)
        if solution.value is None:
            return solution
        return changed(solution, lambda weight: weight * (1 - 0.1 * min(rank[0], 6) / 6))


class VagueRefusal(Sound):
    def curve(self, problem):
        if problem.norm.name != "frobenius":
            msg = "unsupported"
            raise ValueError(msg)
        return super().curve(problem)


class Deaf(Sound):
    """Solves in the Frobenius norm whatever it is asked, and says honestly what error that has."""

    def curve(self, problem):
        points = super().curve(replace(problem, norm=Norm()))
        return [Point(p.rank, self.fit(problem, p.rank).statistics["relative_error"]) for p in points]

    def fit(self, problem, rank):
        solution = super().fit(replace(problem, norm=Norm()), rank)
        if solution.value is None:
            return solution
        return replace(solution, statistics={"relative_error": problem.relative_error(solution.value)})


class IgnoresIdentity(Sound):
    """Takes any covariance for twice itself plus a direction of its own."""

    def fit(self, problem, rank):
        if problem.norm.covariance is None:
            return super().fit(problem, rank)
        tilt = problem.norm.covariance.clone()
        tilt[:, 0, 0] += 100
        return replace(super().fit(replace(problem, norm=replace(problem.norm, covariance=tilt)), rank), statistics={})


class OwnDice(Sound):
    def fit(self, problem, rank):
        return changed(super().fit(problem, rank), lambda weight: weight + 1e-12 * torch.rand_like(weight))


class SeedsEverything(Sound):
    def fit(self, problem, rank):
        torch.manual_seed(0)
        return super().fit(problem, rank)


class AlwaysDouble(Sound):
    def fit(self, problem, rank):
        return changed(super().fit(problem, rank), torch.Tensor.double)


class MixesGroups(Sound):
    def fit(self, problem, rank):
        return changed(super().fit(problem, rank), lambda weight: weight.mean(dim=0, keepdim=True).expand_as(weight))


class FixedThreshold(Sound):
    def fit(self, problem, rank):
        return changed(super().fit(problem, rank), lambda weight: weight * (weight.abs() > 1e-2))


class WorksInPlace(Sound):
    def fit(self, problem, rank):
        solution = super().fit(problem, rank)
        problem.kernel.mul_(1.001)
        return solution


class SharesMemory(Sound):
    def structure(self, shape, rank):
        super().structure(shape, rank)
        return (StageShape(shape.out_channels, shape.in_channels, shape.kernel_size),)

    def fit(self, problem, rank):
        if super().fit(problem, rank).value is None:
            return super().fit(problem, rank)
        return Solution(Factorization((Stage(problem.kernel),)), Status.CONVERGED)


class AnyRank(Sound):
    def structure(self, shape, rank):
        return super().structure(shape, (max(1, *rank, 1),))

    def fit(self, problem, rank):
        return super().fit(problem, (max(1, *rank, 1),))


class GrowsForever(Sound):
    def structure(self, shape, rank):
        first, last = super().structure(shape, rank)
        return replace(first, out_channels=rank[0]), replace(last, in_channels=rank[0])


class SwallowsNan(Sound):
    def fit(self, problem, rank):
        return super().fit(problem.with_kernel(problem.kernel.nan_to_num()), rank)


class DividesByZero(Sound):
    def fit(self, problem, rank):
        scale = problem.kernel.abs().amax()
        return changed(super().fit(problem.with_kernel(problem.kernel / scale), rank), lambda w: w * scale.sqrt())


class TensorStatistics(Sound):
    def fit(self, problem, rank):
        return replace(super().fit(problem, rank), statistics={"iterations": torch.tensor(3)})


class NanStatistics(Sound):
    def fit(self, problem, rank):
        return replace(super().fit(problem, rank), statistics={"sensitivity": float("nan")})


class KeepsTheGraph(Sound):
    def fit(self, problem, rank):
        return changed(super().fit(problem, rank), lambda weight: weight.clone().requires_grad_())


class Swaps(Sound):
    def curves(self, problems):
        return [self.curve(problem) for problem in problems]

    def fits(self, problems, rank):
        return [self.fit(problem, rank) for problem in reversed(problems)]


@dataclass
class Fault:
    """A broken decomposer and the check that must see it."""

    decomposer: type[Any]
    check: str

    def __str__(self) -> str:
        return self.decomposer.__name__


FAULTS = [
    Fault(EmptyCurve, "test_it_is_a_decomposer"),
    Fault(object, "test_it_is_a_decomposer"),
    Fault(WrongStructure, "test_structure_is_what_fit_returns"),
    Fault(TapsTwice, "test_stages_make_a_chain"),
    Fault(Inexact, "test_full_rank_is_exact"),
    Fault(Flatters, "test_reported_error_is_the_error"),
    Fault(OtherNorm, "test_reported_error_is_the_error"),
    Fault(OptimisticCurve, "test_curve_predicts_the_fit"),
    Fault(PessimisticCurve, "test_curve_predicts_the_fit"),
    Fault(Backwards, "test_more_rank_is_not_worse"),
    Fault(VagueRefusal, "test_norm_is_used_or_refused"),
    Fault(Deaf, "test_norm_is_used_or_refused"),
    Fault(IgnoresIdentity, "test_identity_covariance_is_the_frobenius_norm"),
    Fault(OwnDice, "test_same_seed_same_bits"),
    Fault(SeedsEverything, "test_same_seed_same_bits"),
    Fault(AlwaysDouble, "test_float32_agrees_with_float64"),
    Fault(MixesGroups, "test_groups_are_independent"),
    Fault(Swaps, "test_problems_are_solved_together_as_alone"),
    Fault(FixedThreshold, "test_scale_does_not_matter"),
    Fault(WorksInPlace, "test_problem_is_left_alone"),
    Fault(SharesMemory, "test_problem_is_left_alone"),
    Fault(AnyRank, "test_ranks_out_of_range"),
    Fault(GrowsForever, "test_ranks_out_of_range"),
    Fault(SwallowsNan, "test_nonfinite_input_is_told"),
    Fault(DividesByZero, "test_zero_kernel"),
    Fault(TensorStatistics, "test_statistics_are_json"),
    Fault(NanStatistics, "test_statistics_are_json"),
    Fault(KeepsTheGraph, "test_state_round_trip"),
]
