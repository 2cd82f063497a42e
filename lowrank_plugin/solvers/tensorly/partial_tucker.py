# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""TensorLy's own Tucker-2, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lowrank_hooks import (
    Factorization,
    KernelShape,
    Point,
    Problem,
    Rank,
    Solution,
    Stage,
    StageShape,
    Status,
)
from lowrank_plugin.solvers.parts.balance import balance
from lowrank_plugin.solvers.parts.checks import check_dtype, is_finite
from lowrank_plugin.solvers.parts.fit import Fit, fitted
from lowrank_plugin.solvers.parts.ranks import rank_grid
from lowrank_plugin.solvers.tensorly.conversion import from_tucker_tensor, pytorch_backend
from lowrank_plugin.solvers.tucker2 import Tucker2, lower
from lowrank_plugin.solvers.two_block.start import nested_basis


@dataclass(frozen=True)
class TensorlyPartialTucker:
    """``tensorly.decomposition.partial_tucker`` over outputs and inputs: the stages and ranks of :class:`Tucker2`.

    It minimises the plain norm whatever the problem's norm is; errors are reported in the problem's norm. TensorLy's
    global backend is not changed.

    >>> problem = Problem(torch.ones(1, 6, 4, 3, 3))
    >>> round(TensorlyPartialTucker().fit(problem, (1, 1)).statistics["relative_error"], 4)
    0.0

    :param max_steps: TensorLy's ``n_iter_max``.
    :param tol: TensorLy's ``tol``, the change of the relative error below which it stops.
    :param curve_points: about how many ranks of each mode are on the curve.
    """

    max_steps: int = 100
    tol: float = 1e-4
    curve_points: int = 4

    def structure(self, shape: KernelShape, rank: Rank) -> tuple[StageShape, ...]:
        """See :meth:`lowrank_hooks.Decomposer.structure`."""
        return Tucker2().structure(shape, rank)

    def curve(self, problem: Problem) -> Sequence[Point]:
        """Errors of TensorLy's starting point, the truncated HOSVD, in the problem's norm.

        See :meth:`lowrank_hooks.Decomposer.curve`.
        """
        check_dtype(problem)
        shape = problem.shape
        if shape.taps == 1 or not is_finite(problem):
            return []
        kernel = problem.kernel.flatten(3)
        right, left = nested_basis(kernel, None), nested_basis(kernel.transpose(1, 2), None)
        points = []
        for rank_in in rank_grid(shape.in_channels, problem.rank_multiple, self.curve_points):
            for rank_out in rank_grid(shape.out_channels, problem.rank_multiple, self.curve_points):
                if lower(shape, (rank_out, rank_in)) == (rank_out, rank_in):
                    u, v = left[:, :, :rank_out], right[:, :, :rank_in]
                    core = torch.einsum("gtsk,gtq,gsp->gqpk", kernel, u, v)
                    dense = torch.einsum("gqpk,gtq,gsp->gtsk", core, u, v)
                    chain = Factorization((Stage(dense.reshape_as(problem.kernel)),))
                    points.append(Point((rank_out, rank_in), problem.relative_error(chain)))
        return points

    def fit(self, problem: Problem, rank: Rank) -> Solution:
        """See :meth:`lowrank_hooks.Decomposer.fit`."""
        return fitted(problem, rank, lower, self._solve)

    def _solve(self, problem: Problem, ranks: tuple[int, int]) -> Fit:
        from tensorly.decomposition import partial_tucker

        tensors, errors = [], []
        with pytorch_backend():
            for kernel in problem.kernel.flatten(3):
                tucker, history = partial_tucker(
                    kernel, ranks, modes=[0, 1], n_iter_max=self.max_steps, tol=self.tol, random_state=problem.seed
                )
                tensors.append(tucker)
                errors.append([float(error) for error in history])
        chain = _drop_full_modes(from_tucker_tensor(tensors, problem.shape.kernel_size), problem.shape, ranks)
        longest = max(errors, key=len)
        status = Status.CONVERGED if len(longest) < self.max_steps else Status.MAX_ITERATIONS
        return Fit(balance(chain), status, longest)


def _drop_full_modes(chain: Factorization, shape: KernelShape, rank: Rank) -> Factorization:
    """Multiply the orthogonal factors of modes with full rank into the core."""
    first, core, last = chain.stages
    stages = [core]
    if rank[1] >= shape.in_channels:
        stages = [Stage(Factorization((first, core)).to_kernel())]
    else:
        stages.insert(0, first)
    if rank[0] >= shape.out_channels:
        stages[-1] = Stage(Factorization((stages[-1], last)).to_kernel())
    else:
        stages.append(last)
    return Factorization(tuple(stages))
