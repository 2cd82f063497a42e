# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Where the two-block alternation starts: at what is best if the covariance is a Kronecker product."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_plugin.solvers.parts.linear_algebra import cholesky, overwriting_eigh


def nested_basis(kernel: Tensor, means: tuple[Tensor, Tensor] | None, count: int | None = None) -> Tensor:
    r"""Orthonormal combinations of the A columns, most important first: the HOSVD of the whitened kernel.

    With roots :math:`L L^\top` and :math:`M M^\top` of the mean blocks of combined and kept columns and the Gram
    :math:`C = \sum_t W_t M M^\top W_t^\top`, the leading R columns span what the leading R right singular vectors of
    the whitened unfolding span after un-whitening: :math:`C L V`, which needs no inverse of L. It is the HOSVD in the
    norm of the problem where the covariance is the Kronecker product of its mean blocks.

    >>> kernel = torch.diag(torch.tensor([1.0, 3.0, 2.0]))[None, :, :, None]  # [1, 3, 3, 1]
    >>> nested_basis(kernel, None, 2).abs().argmax(dim=1)  # the strongest inputs first
    tensor([[1, 2]])

    :param kernel: [G, T, A, B].
    :param means: the mean blocks, positive definite [G, A, A] and [G, B, B]; None for the identity.
    :param count: R, how many columns are wanted; None for all.
    :return: [G, A, R], orthonormal columns, in the kernel's dtype.
    """
    # float64: small A x A matrices, and the trailing columns come from eigenvalues far below the leading one.
    columns = torch.zeros(*kernel.shape[:1], *kernel.shape[2:3] * 2, dtype=torch.float64, device=kernel.device)
    kept = None if means is None else cholesky(means[1].double())[:, None]
    for rows in kernel.transpose(1, 2).split(max(1, kernel.shape[1] // 4), dim=2):
        wide = (rows.double() if kept is None else rows.double() @ kept).flatten(2)
        columns.baddbmm_(wide, wide.mT)
    count = columns.shape[2] if count is None else count
    if means is None:
        return overwriting_eigh(columns)[1][:, :, -count:].to(kernel).flip(2)
    root = cholesky(means[0].double())
    weighted = columns @ root
    basis = weighted @ overwriting_eigh(root.mT @ weighted)[1][:, :, -count:].flip(2)
    lengths = torch.linalg.vector_norm(basis, dim=1, keepdim=True)
    basis = basis / torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    return torch.linalg.qr(basis).Q.to(kernel)


def leading_outputs(kernel: Tensor, weighted: Tensor, count: int) -> Tensor:
    r"""The kernel seen through the combinations of its outputs that would be kept if no inputs were combined.

    They are the leading eigenvectors of :math:`W \Sigma W^\top`. A start that heeds only them spends no rank on what is
    cut off later anyway; on trained kernels that is worth more than a sweep.

    >>> kernel = torch.diag(torch.tensor([1.0, 3.0, 2.0]))[None, :, :, None]
    >>> leading_outputs(kernel, kernel.flatten(2), 1).abs().flatten()
    tensor([0., 3., 0.])

    :param kernel: W, [G, T, A, B].
    :param weighted: W times the covariance, [G, T, A*B].
    :param count: Q, how many combinations.
    :return: [G, min(Q, T), A, B].
    """
    if count >= kernel.shape[1]:
        return kernel
    vectors = overwriting_eigh(weighted @ kernel.flatten(2).mT)[1]
    return (vectors[:, :, -count:].mT @ kernel.flatten(2)).unflatten(2, kernel.shape[2:])
