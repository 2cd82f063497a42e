# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Higher-order orthogonal iteration over two modes, by Gram matrices instead of singular value decompositions.

[1] De Lathauwer, De Moor and Vandewalle, "On the Best Rank-1 and Rank-(R1,...,RN) Approximation of Higher-Order
Tensors", SIAM J. Matrix Anal. Appl. 21(4), 2000, algorithm 4.2.
[2] Zhou, Saad, Tiago and Chelikowsky, "Self-consistent-field Calculations Using Chebyshev-filtered Subspace Iteration",
J. Comput. Phys. 219(1), 2006.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_plugin.solvers.parts.linear_algebra import overwriting_eigh

_MOMENTUM = 0.7
"""Found on trained kernels: 0.7 to 1 converge fastest, from 1.5 on errors may rise."""

_DEGREE = 3
"""Of the filter. Found on trained kernels: with 3 the errors fall as with eigenvectors, with 2 a little slower."""

_DAMPED = 0.9
"""Share of the smallest eigenvalue wanted up to which the filter damps: the next ones are close to it."""


@dataclass(frozen=True)
class Subspaces:
    """The state: one subspace for each mode, the second optimal for the first.

    >>> state = Subspaces(torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.zeros(1).double(), None)
    >>> float(state.error)
    0.0

    :param left: orthonormal [G, T, Q].
    :param basis: orthonormal [G, A, R].
    :param error: squared error of each group, float64 [G].
    :param before: the basis one sweep earlier, if there was one.
    """

    left: Tensor
    basis: Tensor
    error: Tensor
    before: Tensor | None


@dataclass(frozen=True)
class Hooi:
    """The iteration in the plain norm, for :func:`lowrank_plugin.solvers.parts.driver.iterate`.

    Differs from [1] in three ways. Each factor comes from the Gram matrix of its own mode size (T x T or A x A), never
    from the singular value decomposition of the much longer unfolding. A factor that is nearly right already is not
    replaced by eigenvectors of its Gram but improved by a polynomial in it ([2]): the next sweep turns it anyway. And
    each sweep starts a little beyond the last basis, in the direction of its last change, which takes about two thirds
    of the sweeps; one that fails to lower the error is done again from the basis itself, with eigenvectors.

    >>> from lowrank_plugin.solvers.parts.driver import iterate
    >>> kernel = torch.ones(1, 6, 9, 4)
    >>> outcome = iterate(Hooi(kernel, kernel.double().square().sum().reshape(1), 1, 1), 3, 1e-6)
    >>> round(outcome.errors[-1], 3)
    0.0

    :param kernel: [G, T, B, A], the mode without a factor in the middle: then no product needs a transposed copy.
    :param energy: squared norm of the kernel, float64 [G].
    :param rank_out: Q.
    :param rank_in: R.
    """

    kernel: Tensor
    energy: Tensor
    rank_out: int
    rank_in: int

    def init(self) -> Subspaces:
        """The HOSVD's basis, the best left factor for it, then a better basis for that."""
        return self._sweep(_leading(_gram(self.kernel.flatten(1, 2).mT), self.rank_in), None, None)

    def step(self, state: Subspaces) -> Subspaces:
        """Update both factors, from a point beyond the last update where that pays."""
        basis, before = state.basis, state.before
        ahead = basis if before is None else basis + _MOMENTUM * (basis - before @ (before.mT @ basis))
        better = self._sweep(ahead, state.left, basis)
        return better if bool(better.error.sum() <= state.error.sum()) else self._sweep(basis, None, basis)

    def error(self, state: Subspaces) -> Tensor:
        """The squared error, a scalar."""
        return state.error.sum()

    def core(self, state: Subspaces) -> Tensor:
        """The core between the factors of a state, [G, Q, R, B]."""
        core = self._rows(state.left) @ state.basis
        return core.unflatten(1, (-1, self.kernel.shape[2])).mT

    def _sweep(self, basis: Tensor, left: Tensor | None, before: Tensor | None) -> Subspaces:
        """Both factors in turn for a basis, the left one from one that is nearly right if there is any."""
        gram = _gram(self._seen(basis))
        left = _leading(gram, self.rank_out) if left is None else filtered(gram, left)
        gram = _gram(self._rows(left).mT)
        basis = filtered(gram, basis)
        explained = ((gram @ basis) * basis).double().sum(dim=(1, 2))
        return Subspaces(left, basis, (self.energy - explained).clamp_min(0), before)

    def _seen(self, basis: Tensor) -> Tensor:
        """The kernel seen from the inputs, [G, T, B*R]."""
        return (self.kernel.flatten(1, 2) @ basis).unflatten(1, self.kernel.shape[1:3]).flatten(2)

    def _rows(self, left: Tensor) -> Tensor:
        """The kernel seen from the outputs, [G, Q*B, A]."""
        return (left.mT @ self.kernel.flatten(2)).reshape(len(left), -1, self.kernel.shape[3])


def hooi_size(outputs: int, inputs: int, taps: int, rank_out: int, rank_in: int) -> int:
    """The most entries held at once: the kernel's copy, two states, and the largest step.

    >>> hooi_size(64, 64, 9, 32, 32)
    74752

    :param outputs: T.
    :param inputs: S.
    :param taps: K.
    :param rank_out: Q.
    :param rank_in: R.
    """
    kernel = outputs * inputs * taps
    states = 2 * (outputs * rank_out + inputs * rank_in) + inputs * rank_in
    wide = max(outputs, inputs) ** 2
    filtering = 2 * wide + 7 * max(outputs * rank_out, inputs * rank_in)
    out_gram = outputs * taps * rank_in + outputs**2
    in_gram = rank_out * taps * inputs + max(inputs**2, rank_out * taps * rank_in)
    return kernel + states + max(3 * wide, filtering, out_gram, in_gram)


def _gram(rows: Tensor) -> Tensor:
    return rows @ rows.mT


def _leading(gram: Tensor, rank: int) -> Tensor:
    """The leading ``rank`` eigenvectors of [G, n, n], which is overwritten; largest eigenvalue first."""
    if rank >= gram.shape[-1]:
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return eye.expand(gram.shape)
    return overwriting_eigh(gram)[1][:, :, -rank:].flip(2)


def filtered(gram: Tensor, near: Tensor) -> Tensor:
    """An orthonormal basis closer to the leading eigenvectors of [G, n, n] than ``near``, by a Chebyshev polynomial.

    It is at most 1 from 0, below which a Gram matrix has no eigenvalues, to just below the smallest of those wanted,
    and grows fast from there.

    >>> gram = torch.diag(torch.tensor([4.0, 1.0, 0.5]))[None]
    >>> near = torch.linalg.qr(torch.tensor([[[1.0], [0.3], [0.0]]])).Q
    >>> bool(filtered(gram, near)[0, 0].abs() > near[0, 0].abs())
    True

    :param gram: positive semi-definite.
    :param near: [G, n, R], nearly orthonormal.
    :return: [G, n, R], orthonormal.
    """
    if near.shape[2] >= near.shape[1]:
        return near
    image = gram @ near
    quotients = (image * near).sum(dim=1)
    smallest, largest = quotients.amin(dim=1), quotients.amax(dim=1)
    # The polynomial grows with the cube of their ratio, and rounding with it.
    if not bool((smallest > torch.finfo(gram.dtype).eps ** 0.5 * largest).all()):
        return _leading(gram.clone(), near.shape[2])
    half = _DAMPED / 2 * smallest[:, None, None]
    before, filtered, double = near, image / half - near, gram * (2 / half)
    double.diagonal(dim1=1, dim2=2).sub_(2)
    for _ in range(_DEGREE - 1):
        before, filtered = filtered, torch.baddbmm(before, double, filtered, beta=-1)
    return torch.linalg.qr(filtered).Q
