# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The hybrid of Tucker-2 and the spatial SVD: channel mixings around a column and a row of taps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lowrank_hooks import Factorization, KernelShape, NormKind, Point, Problem, Rank, Solution, Stage, StageShape
from lowrank_plugin.solvers.parts.canonical import canonical
from lowrank_plugin.solvers.parts.checks import check_dtype, is_finite
from lowrank_plugin.solvers.parts.driver import iterate
from lowrank_plugin.solvers.parts.fit import Fit, fitted, from_canonical
from lowrank_plugin.solvers.parts.memory import whole_fit
from lowrank_plugin.solvers.parts.ranks import check_rank, rank_grid
from lowrank_plugin.solvers.spatial_svd import takes
from lowrank_plugin.solvers.two_block.folding import Folded, fold, project
from lowrank_plugin.solvers.two_block.iteration import Blocks, improve_basis, overwriting_cholesky, regress, whiten
from lowrank_plugin.solvers.two_block.memory import fit_bytes, rows_bytes
from lowrank_plugin.solvers.two_block.start import nested_basis


@dataclass(frozen=True)
class Tucker2Spatial:
    r"""1x1 into R_S channels, kh x 1 into R, 1 x kw into R_T, 1x1 out of them; rank (R_T, R_S, R).

    All four stages are fitted in the norm: the last two jointly by reduced-rank regression, the first two by
    conjugate gradients in turn (:mod:`lowrank_plugin.solvers.two_block`); the error never rises. It starts from the
    leading input combinations of Tucker-2 and the spatial SVD of what they see. A mode whose rank is full gets no 1x1
    convolution. It takes kernels with two spatial axes of more than one tap.

    >>> problem = Problem(torch.ones(1, 6, 4, 3, 3))
    >>> [stage.kernel_size for stage in Tucker2Spatial().structure(problem.shape, (2, 2, 3))]
    [(1, 1), (3, 1), (1, 3), (1, 1)]
    >>> round(Tucker2Spatial().fit(problem, (1, 1, 1)).statistics["relative_error"], 4)
    0.0

    :param max_steps: the most sweeps.
    :param rtol: relative decrease of the squared error below which the iteration ends.
    :param cg_steps: conjugate-gradient steps a block and sweep.
    :param relaxation: over-relaxation of the updates of the first two stages, from 1 to below 2.
    :param curve_points: about how many ranks of each channel mode are on the curve; two more of the middle ones.
    """

    max_steps: int = 6
    rtol: float = 3e-3
    cg_steps: int = 2
    relaxation: float = 1.6
    curve_points: int = 6

    def structure(self, shape: KernelShape, rank: Rank) -> tuple[StageShape, ...]:
        """See :meth:`lowrank_hooks.Decomposer.structure`."""
        rank_out, rank_in, middle = _lower(shape, rank)
        high, wide = shape.kernel_size
        stages = [StageShape(middle, rank_in, (high, 1)), StageShape(rank_out, middle, (1, wide))]
        if rank_in < shape.in_channels:
            stages.insert(0, StageShape(rank_in, shape.in_channels, (1, 1)))
        if rank_out < shape.out_channels:
            stages.append(StageShape(shape.out_channels, rank_out, (1, 1)))
        return tuple(stages)

    def curve(self, problem: Problem) -> Sequence[Point]:
        """Errors of a fit's starting point at a grid of free ranks, hence upper bounds.

        Ranks at which every chain has more weights than the kernel are left out, and so are input ranks whose 1x1
        convolution saves less than it costs.

        See :meth:`lowrank_hooks.Decomposer.curve`.
        """
        check_dtype(problem)
        if not takes(problem.shape) or not is_finite(problem):
            return []
        folded = fold(canonical(problem).problem, 1)
        total = float(folded.energy.sum())
        multiple, shape = problem.rank_multiple, problem.shape
        points = []
        for reduced, rank_in, largest in self._reductions(folded, problem):
            basis = nested_basis(reduced.kernel, reduced.means, largest)
            whitened, _ = whiten(reduced, basis)
            gram, done = whitened.new_zeros(len(whitened), *whitened.shape[2:] * 2), 0
            for middle in rank_grid(largest, multiple, self.curve_points + 2):
                rows = whitened[:, done * shape.kernel_size[1] : middle * shape.kernel_size[1]]
                gram, done = gram + rows.mT @ rows, middle
                explained = torch.linalg.eigvalsh(gram).clamp_min(0).flip(1).cumsum(1)
                tails = (folded.energy[:, None] - explained).clamp_min(0).sum(dim=0)
                for rank_out in rank_grid(shape.out_channels, multiple, self.curve_points):
                    rank = (rank_out, rank_in, middle)
                    if _lower(shape, rank) == rank:
                        tail = float(tails[min(rank_out, len(tails)) - 1])
                        points.append(Point(rank, (tail / total) ** 0.5 if total > 0 else 0.0))
        return points

    def _reductions(self, folded: Folded, problem: Problem) -> Iterator[tuple[Folded, int, int]]:
        """The problems that are left at a grid of input ranks, with those ranks and the largest middle ranks."""
        shape, taps = problem.shape, problem.shape.kernel_size
        inner = [
            (rank_in, self._largest_middle(shape, rank_in))
            for rank_in in rank_grid(shape.in_channels, problem.rank_multiple, self.curve_points)
        ]
        *inner, (whole, largest) = inner
        basis = nested_basis(folded.kernel, folded.means)
        yield _see_through(folded, basis, taps), whole, max(largest, 1)
        # what the 1x1 convolution adds is less than the vertical stage has less
        inner = [(rank, middle) for rank, middle in inner if taps[0] * middle * (whole - rank) > rank * whole]
        if inner:
            seen = _see(folded, basis[:, :, : inner[-1][0]])
            for rank_in, middle in inner:
                yield _reduce(folded, seen, rank_in, taps), rank_in, middle

    def _largest_middle(self, shape: KernelShape, rank_in: int) -> int:
        """The largest middle rank at which some chain has fewer weights than the kernel; 0 where none has."""
        high, wide = shape.kernel_size
        dense = shape.parameters // shape.groups

        def weights(middle: int) -> int:
            stages = self.structure(shape, (-(-middle // wide), rank_in, middle))
            return sum(stage.parameters for stage in stages)

        middles = range(min(rank_in * high, shape.out_channels * wide), 0, -1)
        return next((middle for middle in middles if weights(middle) < dense), 0)

    def fit(self, problem: Problem, rank: Rank) -> Solution:
        """See :meth:`lowrank_hooks.Decomposer.fit`."""
        solve = from_canonical(partial(self._solve, problem.shape))
        return fitted(problem, rank, _lower, solve, self.peak_bytes)

    def _solve(self, shape: KernelShape, problem: Problem, rank: tuple[int, int, int]) -> Fit:
        """Solve a canonical problem; ``shape`` is that of the kernel as it was asked, which may have more outputs."""
        rank_out, rank_in, middle = rank
        folded = fold(problem, 1)
        algorithm = _Hybrid(folded, shape.kernel_size, rank_in, middle, rank_out, self.cg_steps, self.relaxation)
        outcome = iterate(algorithm, self.max_steps, self.rtol)
        chain = _chain(outcome.state, shape, rank_in, rank_out)
        return Fit(chain, outcome.status, folded.history(outcome.errors), folded.norm_squared())

    def peak_bytes(self, shape: KernelShape, rank: Rank, kind: NormKind, itemsize: int) -> int:
        """See :meth:`lowrank_hooks.PeakMemory.peak_bytes`."""
        rank_out, rank_in, middle = _lower(shape, rank)
        stages = self.structure(shape, rank)
        high, inner = shape.kernel_size[0], rank_in * shape.taps
        seen = 8 * min(shape.out_channels, shape.in_channels * shape.taps) * inner
        if not kind.weighted:
            rows = middle * shape.kernel_size[1]
            states = 12 * (shape.out_channels * rank_out + rank_out * rows + rank_in * (high * middle + 1))
            regressing = 8 * rows * (shape.out_channels + rank_out) + 24 * shape.out_channels**2
            improving = 3 * itemsize * rank_out * inner + 24 * rank_in * high * middle
            steps = max(24 * (rank_in * high) ** 2, states + max(regressing, improving))
            return whole_fit(shape, stages, kind, itemsize, shape.groups * 28 * (seen // 2 + steps) // 25)
        # The first stage's problem is a fit of its own within the projected covariance, held in the kernel's dtype.
        reduced = KernelShape(shape.groups, shape.out_channels, rank_in, shape.kernel_size)
        within = fit_bytes(reduced, rank_in * high, middle, rank_out, itemsize)
        held = itemsize * (shape.groups * inner**2 + 2 * shape.parameters)
        columns = shape.in_channels * shape.taps
        regressing = 8 * inner**2 + 3 * seen + 24 * min(shape.out_channels, columns) ** 2
        making = shape.groups * max(regressing, rows_bytes(columns, inner, itemsize))
        within = max(within, making, fit_bytes(shape, shape.in_channels, 1, 1, itemsize) - held)
        return whole_fit(shape, stages, kind, itemsize, 27 * (held + within) // 25)


@dataclass(frozen=True)
class _State:
    """All four stages.

    :param first: U_S, orthonormal [G, S, R_S].
    :param rest: the other stages, ``basis`` [G, R_S*kh, R], ``core`` [G, R_T, R, kw] and ``left`` [G, T, R_T].
    """

    first: Tensor
    rest: Blocks


@dataclass(frozen=True)
class _Hybrid:
    """The alternation, for :func:`lowrank_plugin.solvers.parts.driver.iterate`.

    :param folded: channels combined, taps kept.
    :param taps: (kh, kw).
    """

    folded: Folded
    taps: tuple[int, ...]
    rank_in: int
    middle: int
    rank_out: int
    cg_steps: int
    relaxation: float

    def init(self) -> _State:
        first = nested_basis(self.folded.kernel, self.folded.means, self.rank_in)
        reduced = _see_through(self.folded, first, self.taps)
        basis = nested_basis(reduced.kernel, reduced.means, self.middle)
        return _State(first, regress(reduced, basis, self.rank_out))

    def step(self, state: _State) -> _State:
        first, vertical = self._improve_first(state)
        reduced = _see_through(self.folded, first, self.taps)
        rest = regress(reduced, torch.linalg.qr(vertical).Q, self.rank_out)
        vertical = improve_basis(reduced, rest, self.cg_steps, self.relaxation)
        return _State(first, regress(reduced, torch.linalg.qr(vertical).Q, self.rank_out))

    def error(self, state: _State) -> Tensor:
        return state.rest.error.sum()

    def _improve_first(self, state: _State) -> tuple[Tensor, Tensor]:
        """A better U_S with all else given, and the vertical stage for its orthonormal form."""
        rest, rank_in = state.rest, state.first.shape[2]
        if rank_in == state.first.shape[1]:
            return state.first, rest.basis
        vertical = rest.basis.unflatten(1, (rank_in, -1))
        core = torch.einsum("gpir,gqrj->gqpij", vertical, rest.core).flatten(3)
        whole = Blocks(state.first, rest.left, core, rest.error)
        raw = improve_basis(self.folded, whole, self.cg_steps, self.relaxation)
        first, mixing = torch.linalg.qr(raw)
        return first, torch.einsum("gop,gpir->goir", mixing, vertical).flatten(1, 2)


@dataclass(frozen=True)
class _Seen:
    """A folded problem through the columns of U_S. Every leading block is that of fewer columns.

    :param weighted: W times the covariance, [G, T, R_S*K].
    :param covariance: with its ridge, in the kernel's dtype [G, R_S*K, R_S*K]; None for the identity.
    :param lower: its Cholesky factor, float64; None for the identity.
    :param half: the factor's inverse times the transpose of ``weighted``, float64; None for the identity.
    """

    weighted: Tensor
    covariance: Tensor | None
    lower: Tensor | None
    half: Tensor | None


def _see(folded: Folded, first: Tensor) -> _Seen:
    weighted = project(folded.weighted, first)
    if folded.covariance is None:
        return _Seen(weighted, None, None, None)
    covariance = folded.gram(first, folded.kernel.dtype)
    lower = overwriting_cholesky(partial(covariance.to, torch.float64, copy=True))
    return _Seen(weighted, covariance, lower, torch.linalg.solve_triangular(lower, weighted.mT.double(), upper=False))


def _reduce(folded: Folded, seen: _Seen, rank: int, taps: tuple[int, ...]) -> Folded:
    """The problem left for the inner stages with the leading columns of U_S."""
    size = rank * folded.kernel.shape[3]
    weighted = seen.weighted[:, :, :size]
    sizes = (*weighted.shape[:2], rank * taps[0], taps[1])
    if seen.covariance is None or seen.lower is None or seen.half is None:
        return Folded.of(weighted.reshape(sizes), None, folded.ridge, weighted, folded.energy)
    kernel = torch.linalg.solve_triangular(seen.lower[:, :size, :size].mT, seen.half[:, :size], upper=True)
    # The Gram holds the ridge already.
    ridge = torch.zeros_like(folded.ridge)
    kernel = kernel.mT.to(weighted).reshape(sizes)
    return Folded.of(kernel, seen.covariance[:, :size, :size], ridge, weighted, folded.energy)


def _see_through(folded: Folded, first: Tensor, taps: tuple[int, ...]) -> Folded:
    """The problem left for the inner stages once U_S is given: vertical taps combined, horizontal ones kept."""
    groups, outputs, a, _ = folded.kernel.shape
    if first.shape[2] < a:
        return _reduce(folded, _see(folded, first), first.shape[2], taps)
    # U_S is then the identity in :func:`_chain`, so the basis must not be rotated here.
    kernel = folded.kernel.reshape(groups, outputs, a * taps[0], taps[1])
    return Folded.of(kernel, folded.covariance, folded.ridge, folded.weighted, folded.energy)


def _lower(shape: KernelShape, rank: Rank) -> tuple[int, int, int]:
    check_rank(rank, 3, "tucker2_spatial")
    if not takes(shape):
        msg = f"tucker2_spatial needs two spatial axes of more than one tap each, not {shape.kernel_size}; use svd."
        raise ValueError(msg)
    high, wide = shape.kernel_size
    rank_out, rank_in, middle = (int(entry) for entry in rank)
    rank_in, rank_out = min(rank_in, shape.in_channels), min(rank_out, shape.out_channels)
    while True:
        inner = min(middle, rank_in * high, rank_out * wide)
        bounded = (min(rank_out, inner * wide), min(rank_in, inner * high), inner)
        if bounded == (rank_out, rank_in, middle):
            return bounded
        rank_out, rank_in, middle = bounded


def _chain(state: _State, shape: KernelShape, rank_in: int, rank_out: int) -> Factorization:
    first, rest = state.first, state.rest
    vertical = rest.basis.mT.unflatten(2, (rank_in, -1)).unsqueeze(-1)
    stages = [Stage(vertical), Stage(rest.core.unsqueeze(3))]
    if rank_in < shape.in_channels:
        stages.insert(0, Stage(first.mT[..., None, None]))
    if rank_out < shape.out_channels:
        left = rest.left
        if left is None:
            left = torch.eye(rest.core.shape[1], dtype=first.dtype, device=first.device).expand(len(first), -1, -1)
        stages.append(Stage(left[..., None, None]))
    return Factorization(tuple(stages))
