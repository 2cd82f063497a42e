# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The three-block scheme for covariance-weighted Tucker-2, as published, for comparison.

Kalle et al., "Distribution-Aware Tensor Decomposition for Compression of Convolutional Neural Networks", NeurIPS 2025,
arXiv:2511.04494, algorithm 2: HOSVD start; then in turn the input factor by MINRES to 1e-10, the output factor and the
core by their normal equations. In favour of this baseline the products of MINRES use the compressed rows of the core
(R_T instead of T) and all products are single matrix multiplications.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, minres
from torch import Tensor


def three_blocks(kernel: Tensor, covariance: Tensor, rank: tuple[int, int]) -> Iterator[tuple[float, float, int]]:
    """Iterate for as long as the caller wants.

    :param kernel: float32 [T, S, K].
    :param covariance: float32 [S*K, S*K].
    :param rank: (R_T, R_S).
    :return: after each iteration, the relative error, the seconds spent so far and the products with the covariance
        that MINRES made.
    """
    taps = kernel.shape[2]
    matrix = kernel.flatten(1)
    started = time.perf_counter()
    weighted = matrix @ covariance
    energy = float((weighted * matrix).sum())
    left = torch.linalg.svd(matrix, full_matrices=False).U[:, : rank[0]]
    right = torch.linalg.svd(kernel.transpose(0, 1).flatten(1), full_matrices=False).U[:, : rank[1]]
    core = _core(weighted, covariance, left, right, taps)
    while True:
        right, products = _update_right(weighted, covariance, left, right, core)
        design = torch.einsum("qpk,sp->qsk", core, right).flatten(1)
        seen = design @ covariance
        left = torch.linalg.solve((seen @ design.T).double(), (weighted @ design.T).T.double()).T.float()
        core = _core(weighted, covariance, left, right, taps)
        seconds = time.perf_counter() - started
        difference = matrix - left @ torch.einsum("qpk,sp->qsk", core, right).flatten(1)
        yield (float(((difference @ covariance) * difference).sum()) / energy) ** 0.5, seconds, products
        started = time.perf_counter() - seconds


def _core(weighted: Tensor, covariance: Tensor, left: Tensor, right: Tensor, taps: int) -> Tensor:
    projection = torch.einsum("sp,kl->pksl", right, torch.eye(taps)).reshape(right.shape[1] * taps, -1)
    gram = (projection @ covariance) @ projection.T
    gram = gram.double() + 1e-9 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    rows = torch.linalg.solve((left.T @ left).double(), (left.T @ weighted @ projection.T).double())
    return torch.linalg.solve(gram, rows.T).T.float().reshape(left.shape[1], right.shape[1], taps)


def _update_right(
    weighted: Tensor, covariance: Tensor, left: Tensor, right: Tensor, core: Tensor
) -> tuple[Tensor, int]:
    inputs, taps = right.shape[0], core.shape[2]
    basis, triangular = torch.linalg.qr(left)
    rows = torch.einsum("oq,qpk->opk", triangular, core)
    by_rank = rows.transpose(1, 2).reshape(-1, rows.shape[1])
    products = 0

    def contract(matrix: Tensor) -> Tensor:
        return matrix.reshape(-1, inputs, taps).transpose(0, 1).reshape(inputs, -1) @ by_rank

    def apply(vector: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        guess = torch.from_numpy(np.asarray(vector, dtype=np.float32)).reshape(right.shape)
        dense = (by_rank @ guess.T).reshape(-1, taps, inputs).transpose(1, 2).reshape(-1, inputs * taps)
        return contract(dense @ covariance).reshape(-1).numpy()

    size = right.numel()
    operator = LinearOperator((size, size), matvec=apply, dtype=np.float32)
    rhs = contract(basis.T @ weighted).reshape(-1).numpy()
    solution, _ = minres(operator, rhs, x0=right.reshape(-1).numpy(), rtol=1e-10, maxiter=2000)
    return torch.from_numpy(np.asarray(solution, dtype=np.float32)).reshape(right.shape), products
