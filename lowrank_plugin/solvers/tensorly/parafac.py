# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""TensorLy's own CP decomposition, for comparison."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_hooks import KernelShape, Point, Problem, Rank, Solution, StageShape, Status
from lowrank_plugin.solvers.cp.diagnosis import chain_factors, diagnose, is_degenerate
from lowrank_plugin.solvers.cp.sensitivity import rescale
from lowrank_plugin.solvers.cp.start import to_chain
from lowrank_plugin.solvers.cpd import Cpd, lower
from lowrank_plugin.solvers.parts.fit import Fit, fitted
from lowrank_plugin.solvers.parts.linear_algebra import power_of_two
from lowrank_plugin.solvers.tensorly.conversion import from_cp_tensor, pytorch_backend


@dataclass(frozen=True)
class TensorlyParafac:
    """``tensorly.decomposition.parafac`` over outputs, inputs and taps: the stages and rank of :class:`Cpd`.

    It minimises the plain norm whatever the problem's norm is, and knows no sensitivity; errors are reported in the
    problem's norm. The factors are rescaled as those of :class:`Cpd`. TensorLy's global backend is not changed.

    >>> import torch
    >>> solution = TensorlyParafac().fit(Problem(torch.ones(1, 6, 4, 3, 3)), (1,))
    >>> solution.statistics["relative_error"] < 1e-5
    True

    :param max_steps: TensorLy's ``n_iter_max``.
    :param tol: TensorLy's ``tol``, the change of the relative error below which it stops.
    :param init: TensorLy's ``init``: ``"svd"`` or ``"random"``.
    """

    max_steps: int = 100
    tol: float = 1e-8
    init: str = "svd"

    def structure(self, shape: KernelShape, rank: Rank) -> tuple[StageShape, ...]:
        """See :meth:`lowrank_hooks.Decomposer.structure`."""
        return Cpd().structure(shape, rank)

    def curve(self, problem: Problem) -> Sequence[Point]:
        """Predicted by :class:`Cpd` without slack in the plain norm, then measured in the problem's.

        See :meth:`lowrank_hooks.Decomposer.curve`.
        """
        quick = Cpd(max_sweeps=5)
        plain = Problem(problem.kernel, seed=problem.seed, rank_multiple=problem.rank_multiple, slack=None)
        points = []
        for point in quick.curve(plain):
            value = quick.fit(plain, point.rank).value
            if value is not None:
                points.append(Point(point.rank, problem.relative_error(value)))
        return points

    def fit(self, problem: Problem, rank: Rank) -> Solution:
        """See :meth:`lowrank_hooks.Decomposer.fit`."""
        if not problem.kernel.any():
            # TensorLy divides by the norm of the kernel; the answer needs no solver
            return Cpd().fit(problem, rank)
        return fitted(problem, rank, lower, self._solve)

    def _solve(self, problem: Problem, rank: int) -> Fit:
        from tensorly.decomposition import parafac

        kernel = problem.kernel.flatten(3)
        # TensorLy squares the entries in their own dtype, so they must be of ordinary size.
        scale = float(power_of_two(kernel))
        tensors, longest = [], 0
        with pytorch_backend(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for one in kernel / scale:
                tensor, errors = parafac(
                    one,
                    rank,
                    n_iter_max=self.max_steps,
                    tol=self.tol,
                    init=self.init,
                    random_state=problem.seed,
                    return_errors=True,
                )
                tensors.append(tensor)
                longest = max(longest, len(errors))
        factors = rescale(chain_factors(from_cp_tensor(tensors, problem.shape.kernel_size)))
        statistics = diagnose(factors, kernel / scale, scale)
        status = Status.CONVERGED if longest < self.max_steps else Status.MAX_ITERATIONS
        if is_degenerate(statistics):
            status = Status.DEGENERATE
        scaled = factors._replace(out=factors.out * scale)
        chain = to_chain(rescale(scaled), problem.shape.kernel_size, problem.kernel.dtype)
        return Fit(chain, status, statistics={**statistics, "iterations": longest})
