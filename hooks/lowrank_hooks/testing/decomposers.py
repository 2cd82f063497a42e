# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The checks of decomposers. None of them looks at a clock."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pytest
import torch

from lowrank_hooks import BatchDecomposer, Decomposer, Factorization, Norm, Problem, Stage, StageShape, Status
from lowrank_hooks.testing.base import ROUNDING, ConformanceBase, bits, cast, ordered_pairs, tensors_of, value_of
from lowrank_hooks.testing.problems import Case

HUGE = 10**6

HEARD = 0.02
"""By how much, relative, a fit in a telling norm must be better, at some rank, than the same decomposer's fit in the
Frobenius norm. One that is deaf to the norm gains nothing, as its two fits are one computation. The least that any of
the built-in ones and of the examples gains at its best rank is 0.04: that of the guide, which hears the norm only in
its last stage, on a linear layer. This is half of that."""


class DecomposerConformance(ConformanceBase):
    """What the flow relies on in every decomposer; subclass it under a name that starts with ``Test``."""

    __doc__ += "\n\n" + (ConformanceBase.__doc__ or "")

    def test_it_is_a_decomposer(self) -> None:
        """It has the three methods, and a curve for at least one of the problems it says it takes."""
        assert isinstance(self.decomposer, Decomposer), "A decomposer has the methods structure, curve and fit."
        offered = [case.name for case in self.cases() if not case.refusable and self.decomposer.curve(case.problem)]
        assert offered, "The curve is empty for every problem, so the decomposer would never be chosen."

    def test_structure_is_what_fit_returns(self, case: Case) -> None:
        """``structure`` tells the sizes of the stages without solving."""
        shape = case.problem.shape
        for rank in self.ranks(case):
            told = self.decomposer.structure(shape, rank)
            made = self.known(case, rank).shapes
            assert tuple(told) == made, f"At rank {rank} structure says {told}, but fit returns {made}."

    def test_stages_make_a_chain(self, case: Case) -> None:
        """From S channels to T, each stage taking what the one before leaves; one stage has the taps of each axis."""
        shape, kernel = case.problem.shape, case.problem.kernel
        for rank in self.ranks(case):
            chain = self.known(case, rank)
            stages = chain.shapes
            ends = [shape.in_channels, *(stage.out_channels for stage in stages)]
            assert ends[-1] == shape.out_channels, f"The last stage has {ends[-1]} outputs, not {shape.out_channels}."
            assert ends[:-1] == [stage.in_channels for stage in stages], f"The stages do not fit together: {stages}."
            for stage in chain.stages:
                assert stage.weight.shape[0] == shape.groups, (
                    f"A stage has {stage.weight.shape[0]} groups of the layer."
                )
                assert (stage.weight.dtype, stage.weight.device) == (kernel.dtype, kernel.device), (
                    "A stage has another dtype or device than the kernel."
                )
            for axis, size in enumerate(shape.kernel_size):
                taps = sorted(stage.kernel_size[axis] for stage in stages)
                assert taps == [1] * (len(stages) - 1) + [size], f"Axis {axis} has the taps {taps}, not {size} once."
            assert chain.to_kernel().shape == kernel.shape

    def test_full_rank_is_exact(self, case: Case) -> None:
        """Some rank reproduces the kernel."""
        if self.inexact is not None:
            pytest.skip(f"not exact at any rank: {self.inexact}")
        best = min(self.points(case), key=lambda point: point.error).rank
        rank = self.exact_rank(case.problem.shape) or best
        error = self.known_error(case, rank)
        assert error < ROUNDING, (
            f"The error at rank {rank} is {error:.2e}. Set `inexact` to the reason if no rank is exact, or override "
            "`exact_rank`."
        )

    def test_reported_error_is_the_error(self, case: Case) -> None:
        """``statistics["relative_error"]``, where given, is what the factors really have, in the problem's norm."""
        for rank in self.ranks(case):
            solution = self.decomposer.fit(case.problem, rank)
            if "relative_error" not in solution.statistics:
                pytest.skip(f"the fit at rank {rank} reports no relative_error")
            told, real = solution.statistics["relative_error"], case.problem.relative_error(value_of(solution, rank))
            assert math.isclose(told, real, rel_tol=1e-3, abs_tol=ROUNDING), (
                f"At rank {rank} the statistics say {told:.6g}, but the factors have the error {real:.6g} in the norm "
                f"{case.problem.norm.name!r}."
            )

    def test_curve_predicts_the_fit(self, case: Case) -> None:
        """The predicted errors, which layers and ranks are chosen by, are those of the fits, or a little above."""
        predicted = {point.rank: point.error for point in self.points(case)}
        for rank in self.ranks(case):
            real = self.known_error(case, rank)
            assert real <= (1 + self.curve_tolerance) * predicted[rank] + ROUNDING, (
                f"At rank {rank} the curve promises {predicted[rank]:.6g}, but the fit has {real:.6g}."
            )
            if self.curve_factor is not None:
                assert predicted[rank] <= self.curve_factor * real + 1e-3, (
                    f"At rank {rank} the curve says {predicted[rank]:.6g}, far above the {real:.6g} of the fit."
                )

    def test_more_rank_is_not_worse(self, case: Case) -> None:
        """The error falls with the rank, and so it does on the curve."""
        points = self.points(case)
        for point in points:
            assert 0 <= point.error < math.inf, f"The curve has the error {point.error} at rank {point.rank}."
        predicted = {point.rank: point.error for point in points}
        errors = {rank: self.known_error(case, rank) for rank in self.ranks(case)}
        for low, high in ordered_pairs(list(errors)):
            for what, of in (("fit", errors), ("curve", predicted)):
                assert of[high] <= (1 + self.curve_tolerance) * of[low] + ROUNDING, (
                    f"The {what} has the error {of[low]:.6g} at rank {low} but {of[high]:.6g} at {high}."
                )

    def test_norm_is_used_or_refused(self, case: Case) -> None:
        """A norm that is not supported is refused by name, in ``fit`` as in ``curve``; any other is what is lowered."""
        plain = replace(case.problem, norm=Norm())
        try:
            self.decomposer.curve(case.problem)
        except ValueError as error:
            name = case.problem.norm.name
            assert case.refusable, f"The Frobenius norm cannot be refused: {error}"
            assert name in str(error), f"The refusal does not name the norm {name!r}: {error}"
            rank = min(self.decomposer.curve(plain), key=lambda point: point.error).rank
            with pytest.raises(ValueError, match=name):
                self.decomposer.fit(case.problem, rank)
            return
        if not case.telling:
            return
        if not self.aware:
            pytest.skip("It says that it ignores the norm.")
        errors = [
            (self.known_error(case, rank), case.problem.relative_error(self.fitted(plain, rank)))
            for rank in self.ranks(case)
        ]
        gains = [1 - heard / deaf for heard, deaf in errors if deaf > ROUNDING]
        assert not gains or max(gains) > HEARD, (
            f"In the norm {case.problem.norm.name!r} fits that were asked for it are hardly better than fits in the "
            f"Frobenius norm: {errors}. Use the norm or refuse it; set `aware` to False if you must ignore it."
        )

    def test_identity_covariance_is_the_frobenius_norm(self, case: Case) -> None:
        """Norms that are equal give equal errors."""
        plain = replace(case.problem, norm=Norm())
        columns = plain.matrix.shape[-1]
        identity = torch.eye(columns, dtype=torch.float64).expand(plain.kernel.shape[0], columns, columns).contiguous()
        if case.refusable:
            pytest.skip("tried on the cases of the Frobenius norm")
        twin = Case(f"{case.name}-identity", replace(plain, norm=Norm(identity)))
        rank = self.ranks(twin)[0]
        errors = self.known_error(case, rank), self.error(twin.problem, rank)
        assert self.agree(*errors), f"The errors at rank {rank} are {errors}."

    def test_same_seed_same_bits(self, case: Case) -> None:
        """Two fits are equal to the last bit, and torch's global random state is left alone."""
        rank = self.ranks(case)[0]
        state = torch.get_rng_state()
        first = self.fitted(case.problem, rank)
        self.decomposer.curve(case.problem)
        unchanged = torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
        second = self.fitted(case.problem, rank)
        torch.set_rng_state(state)
        assert bits(first) == bits(second), "Two fits of one problem differ. Draw from problem.generator() only."
        assert unchanged, "torch's global generator was used; use problem.generator()."

    def test_float32_agrees_with_float64(self, case: Case) -> None:
        """Both dtypes are taken and kept."""
        single = cast(case.problem, dtype=torch.float32)
        for rank in self.ranks(case)[:1]:
            chain = self.fitted(single, rank)
            assert {stage.weight.dtype for stage in chain.stages} == {torch.float32}, "The factors are not float32."
            errors = self.known_error(case, rank), case.problem.relative_error(chain.map(torch.Tensor.double))
            assert self.agree(*errors, floor=2e-3), f"The errors at rank {rank} in float64 and float32 are {errors}."

    def test_cuda_agrees_with_the_cpu(self, case: Case) -> None:
        """The work is done where the kernel is."""
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")
        moved = cast(case.problem, device="cuda")
        for rank in self.ranks(case)[:2]:
            chain = self.fitted(moved, rank)
            assert {stage.weight.device.type for stage in chain.stages} == {"cuda"}, (
                "The factors are not on the device."
            )
            errors = self.known_error(case, rank), moved.relative_error(chain)
            assert self.agree(*errors), f"The errors at rank {rank} on the CPU and on CUDA are {errors}."

    def test_groups_are_independent(self, case: Case) -> None:
        """Two groups fitted together have the errors that each has alone."""
        rank = self.ranks(case)[0]
        problem = case.problem
        doubled = torch.cat([problem.kernel, problem.kernel.flip(1)])
        both = replace(problem, kernel=doubled, norm=problem.norm.repeated(2))
        together = self.fitted(both, rank).to_kernel().reshape(both.matrix.shape)
        squared = both.norm.squared(both.matrix - together)
        for group in range(doubled.shape[0]):
            alone = _group(both, group)
            part = float((squared[group] / alone.energy).sqrt())
            errors = part, self.error(alone, rank)
            assert self.agree(*errors), f"Group {group} has the error {errors[0]} with others, {errors[1]} alone."

    def test_problems_are_solved_together_as_alone(self, case: Case) -> None:
        """Where problems may come together, each gets the answer that it gets alone."""
        if not isinstance(self.decomposer, BatchDecomposer):
            pytest.skip("It takes one problem at a time.")
        rank = self.ranks(case)[0]
        others = case.problem, case.problem.with_kernel(case.problem.kernel.flip(1) * 3)
        solutions, curves = self.decomposer.fits(others, rank), self.decomposer.curves(others)
        assert len(solutions) == len(curves) == len(others), "There must be an answer to each problem."
        for problem, solution, curve in zip(others, solutions, curves, strict=True):
            errors = problem.relative_error(value_of(solution, rank)), self.error(problem, rank)
            assert self.agree(*errors), f"The error is {errors[0]} with others, {errors[1]} alone."
            alone = self.decomposer.curve(problem)
            assert [point.rank for point in curve] == [point.rank for point in alone]
            for point, other in zip(curve, alone, strict=True):
                assert self.agree(point.error, other.error), f"{point} is predicted with others, {other} alone."

    def test_scale_does_not_matter(self, case: Case) -> None:
        """A kernel a thousand times smaller, or larger, has the same relative error."""
        rank = self.ranks(case)[0]
        base = self.known_error(case, rank)
        for scale in (1e-3, 1e3):
            error = self.error(case.problem.with_kernel(scale * case.problem.kernel), rank)
            assert self.agree(base, error), f"The error is {base} for a kernel, but {error} for {scale} times it."

    def test_problem_is_left_alone(self, case: Case) -> None:
        """Neither the kernel nor the matrices of the norm are changed, and no factor shares their memory."""
        ranks = self.ranks(case)
        before = [tensor.clone() for tensor in tensors_of(case.problem)]
        self.decomposer.curve(case.problem)
        owned = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(case.problem)}
        for rank in ranks:
            chain = self.fitted(case.problem, rank)
            assert not owned & {stage.weight.untyped_storage().data_ptr() for stage in chain.stages}, (
                "A factor shares the problem's memory, so fine-tuning would change the original weight; clone it."
            )
        for old, new in zip(before, tensors_of(case.problem), strict=True):
            assert torch.equal(old, new), "The problem was modified; work on copies."

    def test_ranks_out_of_range(self, case: Case) -> None:
        """Zero, negative and ranks of a wrong length raise; ranks above the useful ones are lowered."""
        rank, shape = self.ranks(case)[0], case.problem.shape
        for bad in ((), (0,) * len(rank), (-1,) * len(rank), (*rank, 1)):
            for what, call in (
                ("structure", lambda bad=bad: self.decomposer.structure(shape, bad)),
                ("fit", lambda bad=bad: self.decomposer.fit(case.problem, bad)),
            ):
                try:
                    call()
                except ValueError as error:
                    assert str(error), f"{what} raises ValueError without a message for the rank {bad}."
                else:
                    pytest.fail(f"{what} accepts the rank {bad}; it must raise ValueError.")
        huge = (HUGE,) * len(rank)
        largest = self.decomposer.structure(shape, huge)
        assert max(stage.out_channels for stage in largest) < HUGE, "A rank above the useful ones must be lowered."
        assert self.fitted(case.problem, huge).shapes == tuple(largest)

    def test_nonfinite_input_is_told(self, case: Case) -> None:
        """NaN gives the status or a ValueError, never factors."""
        rank = self.ranks(case)[0]
        kernel = case.problem.kernel.clone()
        kernel.flatten()[0] = math.nan
        problem = case.problem.with_kernel(kernel)
        try:
            solution = self.decomposer.fit(problem, rank)
            curve = list(self.decomposer.curve(problem))
        except ValueError as error:
            assert str(error), "A ValueError without a message."
            return
        assert solution.status is Status.NONFINITE_INPUT, f"NaN in the kernel gives the status {solution.status.name}."
        assert solution.value is None, "NaN in the kernel must give no factors."
        assert curve == [], "NaN in the kernel must give an empty curve."

    def test_zero_kernel(self, case: Case) -> None:
        """A kernel of zeros is met exactly."""
        rank = self.ranks(case)[0]
        problem = case.problem.with_kernel(torch.zeros_like(case.problem.kernel))
        assert all(math.isfinite(point.error) for point in self.decomposer.curve(problem)), "A curve with NaN."
        assert self.error(problem, rank) == 0

    def test_statistics_are_json(self, case: Case) -> None:
        """They are stored in reports and states."""
        solution = self.decomposer.fit(case.problem, self.ranks(case)[0])
        assert isinstance(solution.status, Status), f"The status is {solution.status!r}, not a Status."
        try:
            text = json.dumps(dict(solution.statistics), allow_nan=False)
        except (TypeError, ValueError) as error:
            pytest.fail(f"The statistics are not plain JSON values: {error}")
        assert json.loads(text) == dict(solution.statistics), "The statistics change on their way through JSON."

    def test_state_round_trip(self, case: Case) -> None:
        """Sizes as JSON and weights as plain tensors are enough to build the chain again."""
        rank = self.ranks(case)[0]
        chain = self.known(case, rank)
        sizes = [[s.out_channels, s.in_channels, list(s.kernel_size), s.groups] for s in chain.shapes]
        file = io.BytesIO()
        torch.save({str(index): stage.weight for index, stage in enumerate(chain.stages)}, file)
        file.seek(0)
        weights = torch.load(file, weights_only=True)
        assert not any(weight.requires_grad for weight in weights.values()), "Factors must be detached."
        restored = tuple(
            StageShape(out, inputs, tuple(kernel), groups)
            for out, inputs, kernel, groups in json.loads(json.dumps(sizes))
        )
        assert restored == tuple(self.decomposer.structure(case.problem.shape, rank))
        stages = (Stage(weights[str(index)], size.groups) for index, size in enumerate(restored))
        assert torch.equal(Factorization(tuple(stages)).to_kernel(), chain.to_kernel())

    def agree(self, first: float, second: float, floor: float = ROUNDING) -> bool:
        """Whether two errors are equal for the purpose of a check."""
        return math.isclose(first, second, rel_tol=self.agreement, abs_tol=floor)


def _group(problem: Problem, group: int) -> Problem:
    only = slice(group, group + 1)
    return replace(problem, kernel=problem.kernel[only], norm=problem.norm.part(only))
