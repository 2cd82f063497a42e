# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Linear algebra with positive semi-definite matrices, where a singular one is the normal case. All batched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def relative_cutoff(matrix: Tensor) -> float:
    """The share of the largest eigenvalue below which eigenvalues of a square matrix are rounding noise.

    >>> relative_cutoff(torch.ones(8, 8)) == 8 * 2.0**-23
    True

    :param matrix: [..., n, n].
    """
    return matrix.shape[-1] * torch.finfo(matrix.dtype).eps


def power_of_two(tensor: Tensor) -> Tensor:
    """The power of two next below the largest absolute value, a scalar tensor; 1 where there is none above 0.

    >>> power_of_two(torch.tensor([1.0, -3.0])), power_of_two(torch.zeros(2))
    (tensor(2.), tensor(1.))

    :param tensor: of any shape.
    """
    if not tensor.numel():
        return tensor.new_ones(())
    # without the copy that abs() makes
    largest = torch.stack(tensor.aminmax()).abs().amax()
    return torch.where(largest > 0, largest, torch.ones_like(largest)).log2().floor().exp2()


def unit_scale(tensor: Tensor) -> Tensor:
    """The power of two that brings a tensor to unit size; 1 where that would gain nothing, to save the copy.

    >>> unit_scale(torch.tensor([3.0])), unit_scale(torch.tensor([3e30])).log2()
    (tensor(1.), tensor(101.))

    :param tensor: of any shape.
    """
    scale = power_of_two(tensor)
    return torch.where((scale > 2.0**-20) & (scale < 2.0**20), torch.ones_like(scale), scale)


def row_products(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows of two tensors in float64, without a copy of either in it.

    >>> row_products(torch.ones(1, 2, 3), torch.ones(1, 2, 3))
    tensor([[3., 3.]], dtype=torch.float64)

    :param a: [G, T, ...].
    :param b: the same.
    :return: [G, T].
    """
    step = max(1, a.shape[1] // 8)
    parts = zip(a.split(step, dim=1), b.split(step, dim=1), strict=True)
    return torch.cat([(x.double() * y).flatten(2).sum(dim=2) for x, y in parts], dim=1)


def roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root of a positive semi-definite matrix and its pseudo-inverse.

    >>> root, inverse = roots(torch.diag(torch.tensor([4.0, 0.0])))
    >>> root.diagonal(), inverse.diagonal()
    (tensor([2., 0.]), tensor([0.5000, 0.0000]))

    :param matrix: [..., n, n], symmetric.
    :return: two tensors [..., n, n]; eigenvalues below the relative cut-off count as zero in both.
    """
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > relative_cutoff(matrix) * values[..., -1:].clamp_min(0)
    root = torch.where(kept, values, torch.zeros_like(values)).sqrt()
    inverse = torch.where(kept, values.rsqrt(), torch.zeros_like(values))
    return (vectors * root.unsqueeze(-2)) @ vectors.mT, (vectors * inverse.unsqueeze(-2)) @ vectors.mT


def overwriting_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix; the vectors take the memory of the matrix.

    >>> values, vectors = overwriting_eigh(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    >>> values, vectors.abs()
    (tensor([1., 2.]), tensor([[0., 1.],
            [1., 0.]]))

    :param matrix: [..., n, n], contiguous.
    :return: [..., n] and [..., n, n].
    """
    # LAPACK's layout, in which it works where the matrix lies.
    vectors = matrix.mT
    values = matrix.new_empty(matrix.shape[:-1])
    torch.linalg.eigh(vectors, out=(values, vectors))
    return values, vectors


def cholesky(matrix: Tensor) -> Tensor:
    """The lower Cholesky factor of a positive semi-definite matrix, with the least relative ridge that makes it exist.

    The ridge starts at the rounding level of the dtype (relative to the mean eigenvalue) and grows tenfold.

    >>> cholesky(torch.tensor([[4.0, 2.0], [2.0, 1.0]]))[:, 0]  # of rank one
    tensor([2., 1.])

    :param matrix: [..., n, n], symmetric, finite.
    :return: [..., n, n], lower triangular.
    :raises ValueError: where the matrix is not finite or far from semi-definite.
    """
    scale = matrix.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None].clamp_min(torch.finfo(matrix.dtype).tiny)
    ridge = relative_cutoff(matrix)
    while ridge < 1:
        # In place: one copy of the matrix is all that is ever held beside it.
        factor = matrix.clone(memory_format=torch.contiguous_format).mT
        factor.diagonal(dim1=-2, dim2=-1).add_(ridge * scale)
        info = torch.empty(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)
        torch.linalg.cholesky_ex(factor, out=(factor, info))
        if not info.any():
            return factor
        ridge *= 10
    msg = f"A matrix of shape {tuple(matrix.shape)} has no Cholesky factor: it is not finite or not semi-definite."
    raise ValueError(msg)


def solve_right(rhs: Tensor, gram: Tensor) -> Tensor:
    """Solve ``X @ gram = rhs`` for X with a positive semi-definite ``gram``.

    >>> solve_right(torch.tensor([[6.0, 4.0]]), torch.diag(torch.tensor([3.0, 2.0]))).round(decimals=4)
    tensor([[2., 2.]])

    :param rhs: [..., m, n].
    :param gram: [..., n, n].
    :return: [..., m, n].
    """
    return torch.cholesky_solve(rhs.mT, cholesky(gram)).mT


def conjugate_gradient(
    apply: Callable[[Tensor], Tensor],
    squared: Callable[[Tensor], Tensor],
    rhs: Tensor,
    precondition: Callable[[Tensor], Tensor],
    steps: int,
) -> Tensor:
    """Preconditioned conjugate gradients on ``apply(X) = rhs`` from zero; each leading index is a system of its own.

    >>> conjugate_gradient(lambda x: 2 * x, lambda x: 2 * (x * x).sum(1), torch.ones(1, 3), lambda x: x, 1)
    tensor([[0.5000, 0.5000, 0.5000]])

    :param apply: a linear symmetric positive semi-definite map on [B, ...].
    :param squared: X's inner product with ``apply(X)``, [B]; all that the last step needs, and often cheaper.
    :param rhs: [B, ...].
    :param precondition: an approximate inverse of ``apply``.
    :param steps: how many steps are taken.
    :return: [B, ...].
    """

    def spread(scalars: Tensor) -> Tensor:
        return scalars.reshape(-1, *(1 for _ in rhs.shape[1:]))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return spread((a * b).flatten(1).sum(dim=1))

    x, residual = torch.zeros_like(rhs), rhs
    direction = z = precondition(residual)
    rho = dot(residual, z)
    for left in reversed(range(steps)):
        image = apply(direction) if left else None
        curvature = spread(squared(direction)) if image is None else dot(direction, image)
        alpha = torch.where(curvature > 0, rho / curvature, torch.zeros_like(rho))
        x = x + alpha * direction
        if image is not None:
            residual = residual - alpha * image
            z = precondition(residual)
            rho, previous = dot(residual, z), rho
            direction = z + torch.where(previous > 0, rho / previous, torch.zeros_like(rho)) * direction
    return x
