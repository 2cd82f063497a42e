# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The norm in which a layer's approximation error is measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 512
"""Columns that a product with the covariance is computed for at a time."""


@dataclass(frozen=True)
class Norm:
    r"""The operator norm :math:`\|W\|^2 = \mathrm{tr}(\Gamma W \Sigma W^\top)`, one for every group of a layer.

    With both matrices absent it is the Frobenius norm; with the centred covariance :math:`\Sigma` of the input
    patches it is the mean squared change of the layer's output ([1], eq. 1); with the second moment
    :math:`\Gamma` of the output gradients as well it is the two-sided (K-FAC) norm.

    [1] Kalle et al., "Distribution-Aware Tensor Decomposition for Compression of Convolutional Neural Networks",
    NeurIPS 2025, arXiv:2511.04494.

    >>> import torch
    >>> w = torch.tensor([[[3.0, 4.0]]])
    >>> Norm().squared(w)
    tensor([25.])
    >>> Norm(covariance=torch.diag(torch.tensor([1.0, 0.0]))[None]).squared(w)
    tensor([9.])

    :param covariance: symmetric positive semi-definite [G, S*K, S*K], columns ordered (channel, tap) as in
        ``kernel.flatten(2)``; a singular one is normal. None stands for the identity.
    :param gradient: symmetric positive semi-definite [G, T, T]; None stands for the identity.
    """

    covariance: Tensor | None = None
    gradient: Tensor | None = None

    @property
    def name(self) -> str:
        """The name users type: ``"frobenius"``, ``"covariance"`` or ``"two-sided"``."""
        if self.gradient is not None:
            return "two-sided"
        return "covariance" if self.tensors else "frobenius"

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it is made of."""
        return tuple(each for each in (self.covariance, self.gradient) if each is not None)

    @property
    def one_sided(self) -> Norm:
        """The same norm without the gradient."""
        return Norm(self.covariance)

    def apply(self, matrix: Tensor) -> Tensor:
        r"""Return :math:`\Gamma W \Sigma`, half the gradient of the squared norm.

        :param matrix: W, [G, T, S*K].
        :return: [G, T, S*K], in the dtype and on the device of ``matrix``.
        """
        if self.covariance is not None:
            matrix = matrix @ self.covariance.to(matrix)
        if self.gradient is not None:
            matrix = self.gradient.to(matrix) @ matrix
        return matrix

    def squared(self, matrix: Tensor) -> Tensor:
        """Return the squared norm of each group.

        :param matrix: W, [G, T, S*K].
        :return: [G], never below zero.
        """
        if self.covariance is None:
            image = self.apply(matrix)
            return (image * matrix).sum(dim=(-2, -1)).clamp_min(0)
        # Every pair of columns counts twice, so half of the symmetric covariance is enough.
        covariance, total = self.covariance.to(matrix), matrix.new_zeros(matrix.shape[:-2])
        for begin in range(0, matrix.shape[-1], BLOCK):
            block = slice(begin, begin + BLOCK)
            image = matrix[..., block] @ covariance[:, block, block]
            image.add_(matrix[..., :begin] @ covariance[:, :begin, block], alpha=2)
            if self.gradient is not None:
                image = self.gradient.to(matrix) @ image
            total = total + image.mul_(matrix[..., block]).sum(dim=(-2, -1))
        return total.clamp_min(0)

    def gram(self, matrix: Tensor) -> Tensor:
        r"""Return :math:`W \Sigma W^\top`, the covariance of the outputs, symmetric but for rounding.

        In float64: the error at a nearly full rank is a difference of its eigenvalues, of which the smallest are below
        the float32 rounding of the largest. The covariance is converted a block at a time. The gradient has no part.

        :param matrix: W, [G, T, S*K].
        :return: float64 [G, T, T] on the device of ``matrix``.
        """
        product = _square(matrix)
        wide = None if self.covariance is None else matrix.double()
        for block in _blocks(matrix):
            narrow = matrix[:, :, block].double()
            seen = narrow if self.covariance is None or wide is None else wide @ self.covariance[:, :, block].double()
            product.baddbmm_(seen, narrow.mT)
        return product


class SampledNorm(Norm):
    r"""A norm whose covariance is that of few vectors, :math:`\Sigma = X^\top X + \rho I`: for very wide layers.

    All that a :class:`Norm` can do is done with the vectors; ``covariance`` is put together at each access, which takes
    the square of the layer's width. Linear layers come with this norm where their inputs are much wider than there are
    of them.

    >>> import torch
    >>> norm = SampledNorm(torch.tensor([[[1.0, 0.0]]]), torch.tensor([0.5]))
    >>> norm.covariance, norm.squared(torch.tensor([[[3.0, 4.0]]]))
    (tensor([[[1.5000, 0.0000],
             [0.0000, 0.5000]]]), tensor([21.5000]))

    :param vectors: X, [G, N, S*K].
    :param ridge: rho, not negative, [G].
    :param gradient: symmetric positive semi-definite [G, T, T]; None stands for the identity.
    """

    vectors: Tensor
    ridge: Tensor

    def __init__(self, vectors: Tensor, ridge: Tensor, gradient: Tensor | None = None) -> None:
        for name, value in (("vectors", vectors), ("ridge", ridge), ("gradient", gradient)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"SampledNorm(vectors={self.vectors!r}, ridge={self.ridge!r}, gradient={self.gradient!r})"

    @property
    def covariance(self) -> Tensor:
        """Put together anew, [G, S*K, S*K]."""
        covariance = self.vectors.mT @ self.vectors
        covariance.diagonal(dim1=-2, dim2=-1).add_(self.ridge[:, None])
        return covariance

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it is made of."""
        return (self.vectors, self.ridge) if self.gradient is None else (self.vectors, self.ridge, self.gradient)

    @property
    def one_sided(self) -> Norm:
        """The same norm without the gradient."""
        return SampledNorm(self.vectors, self.ridge)

    def apply(self, matrix: Tensor) -> Tensor:
        """See :meth:`Norm.apply`."""
        vectors = self.vectors.to(matrix)
        image = (matrix @ vectors.mT) @ vectors + self.ridge.to(matrix)[:, None, None] * matrix
        return Norm(gradient=self.gradient).apply(image)

    def squared(self, matrix: Tensor) -> Tensor:
        """See :meth:`Norm.squared`."""
        outputs = Norm(gradient=self.gradient)
        seen = outputs.squared(matrix @ self.vectors.to(matrix).mT)
        return seen + self.ridge.to(matrix) * outputs.squared(matrix)

    def gram(self, matrix: Tensor) -> Tensor:
        """See :meth:`Norm.gram`."""
        plain = _square(matrix)
        seen = plain.new_zeros(*matrix.shape[:2], self.vectors.shape[1])
        for block in _blocks(matrix):
            narrow = matrix[:, :, block].double()
            plain.baddbmm_(narrow, narrow.mT)
            seen.baddbmm_(narrow, self.vectors[:, :, block].double().mT)
        return plain.mul_(self.ridge.double()[:, None, None]).baddbmm_(seen, seen.mT)


def _square(matrix: Tensor) -> Tensor:
    """Zeros for products of the rows of [G, T, N] with each other."""
    return torch.zeros(*matrix.shape[:2], matrix.shape[1], dtype=torch.float64, device=matrix.device)


def _blocks(matrix: Tensor) -> list[slice]:
    columns = matrix.shape[-1]
    step = max(1, min(BLOCK, columns // 4))
    return [slice(begin, begin + step) for begin in range(0, columns, step)]
