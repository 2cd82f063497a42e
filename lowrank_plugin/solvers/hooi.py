# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Higher-order orthogonal iteration over two modes, by Gram matrices instead of singular value decompositions.

[1] De Lathauwer, De Moor and Vandewalle, "On the Best Rank-1 and Rank-(R1,...,RN) Approximation of Higher-Order
Tensors", SIAM J. Matrix Anal. Appl. 21(4), 2000, algorithm 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_MOMENTUM = 0.7
"""Found on trained kernels: 0.7 to 1 converge fastest, from 1.5 on errors may rise."""


@dataclass(frozen=True)
class Subspaces:
    """The state: one subspace for each mode, the second optimal for the first.

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
    """The iteration in the plain norm, for :func:`lowrank_plugin.solvers.driver.iterate`.

    Differs from [1] in two ways. Each factor comes from the eigenvectors of a Gram matrix of its own mode size (T x T
    or A x A), never from the singular value decomposition of the much longer unfolding. And each sweep starts a little
    beyond the last basis, in the direction of its last change, which takes about two thirds of the sweeps; one that
    fails to lower the error is done again from the basis itself.

    :param kernel: [G, T, B, A], the mode without a factor in the middle: then no product needs a transposed copy.
    :param energy: squared norm of the kernel, float64 [G].
    :param start: U, orthonormal [G, A, R].
    :param rank_out: Q.
    """

    kernel: Tensor
    energy: Tensor
    start: Tensor
    rank_out: int

    def init(self) -> Subspaces:
        """The best left factor for the start, then the best basis for that."""
        return self._sweep(self.start)

    def step(self, state: Subspaces) -> Subspaces:
        """Update both factors, from a point beyond the last update where that pays."""
        basis, before = state.basis, state.before
        if before is not None:
            change = basis - before @ (before.mT @ basis)
            ahead = self._sweep(torch.linalg.qr(basis + _MOMENTUM * change).Q, basis)
            if bool(ahead.error.sum() <= state.error.sum()):
                return ahead
        return self._sweep(basis, basis)

    def error(self, state: Subspaces) -> Tensor:
        """The squared error, a scalar."""
        return state.error.sum()

    def _sweep(self, basis: Tensor, before: Tensor | None = None) -> Subspaces:
        seen = (self.kernel.flatten(1, 2) @ basis).unflatten(1, self.kernel.shape[1:3]).flatten(2)  # [G, T, B*R]
        left = _leading(seen @ seen.mT, self.rank_out)
        rows = (left.mT @ self.kernel.flatten(2)).reshape(len(left), -1, self.kernel.shape[3])  # [G, Q*B, A]
        gram = rows.mT @ rows
        basis = _leading(gram, basis.shape[2])
        explained = ((gram @ basis) * basis).double().sum(dim=(1, 2))
        return Subspaces(left, basis, (self.energy - explained).clamp_min(0), before)


def _leading(gram: Tensor, rank: int) -> Tensor:
    """The leading ``rank`` eigenvectors of [G, n, n], largest eigenvalue first."""
    if rank >= gram.shape[-1]:
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return eye.expand(gram.shape)
    return torch.linalg.eigh(gram).eigenvectors[:, :, -rank:].flip(2)
