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

from lowrank_plugin.solvers.two_block import project


@dataclass(frozen=True)
class Subspaces:
    """The state: one subspace for each mode, the second optimal for the first.

    :param left: orthonormal [G, T, Q].
    :param basis: orthonormal [G, A, R].
    :param error: squared error of each group, float64 [G].
    """

    left: Tensor
    basis: Tensor
    error: Tensor


@dataclass(frozen=True)
class Hooi:
    """The iteration in the plain norm, for :func:`lowrank_plugin.solvers.driver.iterate`.

    Differs from [1] in that each factor comes from the eigenvectors of a Gram matrix of its own mode size (T x T or
    A x A), never from the singular value decomposition of the much longer unfolding.

    :param kernel: [G, T, A, B].
    :param start: U, orthonormal [G, A, R].
    :param rank_out: Q.
    """

    kernel: Tensor
    start: Tensor
    rank_out: int

    def init(self) -> Subspaces:
        """The best left factor for the start, then the best basis for that."""
        return self._sweep(self.start)

    def step(self, state: Subspaces) -> Subspaces:
        """Update both factors."""
        return self._sweep(state.basis)

    def error(self, state: Subspaces) -> Tensor:
        """The squared error, a scalar."""
        return state.error.sum()

    def _sweep(self, basis: Tensor) -> Subspaces:
        groups, _, a, b = self.kernel.shape
        energy = self.kernel.double().square().sum(dim=(1, 2, 3))
        seen = project(self.kernel.flatten(2), basis)
        left = _leading(seen @ seen.mT, self.rank_out)
        rows = (left.mT @ self.kernel.flatten(2)).reshape(groups, -1, a, b).transpose(1, 2).flatten(2)  # [G, A, Q*B]
        gram = rows @ rows.mT
        basis = _leading(gram, basis.shape[2])
        explained = ((gram @ basis) * basis).double().sum(dim=(1, 2))
        return Subspaces(left, basis, (energy - explained).clamp_min(0))


def _leading(gram: Tensor, rank: int) -> Tensor:
    """The leading ``rank`` eigenvectors of [G, n, n], largest eigenvalue first."""
    if rank >= gram.shape[-1]:
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return eye.expand(gram.shape)
    return torch.linalg.eigh(gram).eigenvectors[:, :, -rank:].flip(2)
