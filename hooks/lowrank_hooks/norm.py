# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The norms in which a layer's approximation error is measured."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 512
"""Columns that a product with the covariance is computed for at a time."""


@dataclass(frozen=True)
class NormKind:
    """What a norm is called, and what must be known of a layer to measure in it.

    >>> NORMS["covariance"].weighted, NORMS["covariance"].turned
    (True, False)

    :param name: what users write under ``"norm"``.
    :param weighted: whether the layer's inputs count, so that data are needed.
    :param turned: whether the gradients of its outputs count, so that a loss is needed.
    :param summary: one line for listings.
    """

    name: str
    weighted: bool
    turned: bool
    summary: str


NORMS: Mapping[str, NormKind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            NormKind("frobenius", False, False, "change of the weights; needs no data"),
            NormKind("covariance", True, False, "mean squared change of the layer's output; needs inputs"),
            NormKind("two-sided", True, True, "estimated change of the loss (K-FAC); needs inputs and gradients"),
        )
    }
)
"""Every kind of norm by its name, the cheapest first."""


class ErrorNorm(Protocol):
    r"""The operator norm :math:`\|W\|^2 = \mathrm{tr}(\Gamma W \Sigma W^\top)`, one for every group of a layer.

    With both matrices absent it is the Frobenius norm; with the centred covariance :math:`\Sigma` of the input
    patches it is the mean squared change of the layer's output ([1], eq. 1); with the second moment
    :math:`\Gamma` of the output gradients as well it is the two-sided (K-FAC) norm. How the matrices are kept is the
    business of an implementation: :class:`Norm` has them as they are, :class:`SampledNorm` as a product. One that
    inherits from this class is given the methods below that are not abstract. Norms are equal only to themselves.

    [1] Kalle et al., "Distribution-Aware Tensor Decomposition for Compression of Convolutional Neural Networks",
    NeurIPS 2025, arXiv:2511.04494.
    """

    @property
    @abstractmethod
    def covariance(self) -> Tensor | None:
        """Symmetric positive semi-definite [G, S*K, S*K]; None for the identity. May be put together at each access."""
        ...

    @property
    @abstractmethod
    def gradient(self) -> Tensor | None:
        """Symmetric positive semi-definite [G, T, T]; None for the identity."""
        ...

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it is made of, each with G as its first axis."""
        ...

    @property
    @abstractmethod
    def one_sided(self) -> ErrorNorm:
        """The same norm without the gradient."""
        ...

    @abstractmethod
    def map(self, function: Callable[[Tensor], Tensor]) -> ErrorNorm:
        """Return the norm with ``function`` applied to each of its ``tensors`` (a cast, a move to a device).

        :param function: takes and returns a tensor; of another number of groups only where it does so to all alike.
        """
        ...

    @abstractmethod
    def apply(self, matrix: Tensor) -> Tensor:
        r"""Return :math:`\Gamma W \Sigma`, half the gradient of the squared norm.

        :param matrix: W, [G, T, S*K].
        :return: [G, T, S*K], in the dtype and on the device of ``matrix``.
        """
        ...

    @abstractmethod
    def squared(self, matrix: Tensor) -> Tensor:
        """Return the squared norm of each group.

        :param matrix: W, [G, T, S*K].
        :return: [G], never below zero, in the dtype and on the device of ``matrix``.
        """
        ...

    @abstractmethod
    def gram(self, matrix: Tensor) -> Tensor:
        r"""Return :math:`W \Sigma W^\top`, the covariance of the outputs, symmetric but for rounding.

        In float64: the error at a nearly full rank is a difference of its eigenvalues, of which the smallest are below
        the float32 rounding of the largest. The gradient has no part.

        :param matrix: W, [G, T, S*K].
        :return: float64 [G, T, T] on the device of ``matrix``.
        """
        ...

    @property
    def kind(self) -> NormKind:
        """Its entry of ``NORMS``; a norm with a gradient alone counts as two-sided."""
        if self.turned:
            return NORMS["two-sided"]
        return NORMS["covariance" if self.weighted else "frobenius"]

    @property
    def name(self) -> str:
        """The name users type: ``"frobenius"``, ``"covariance"`` or ``"two-sided"``."""
        return self.kind.name

    @property
    def weighted(self) -> bool:
        """Whether it has a covariance."""
        return self.covariance is not None

    @property
    def turned(self) -> bool:
        """Whether it has a gradient."""
        return self.gradient is not None

    def part(self, groups: slice) -> ErrorNorm:
        """The norm of some groups, without a copy.

        >>> Norm(torch.eye(3).expand(4, 3, 3)).part(slice(1, 3)).covariance.shape
        torch.Size([2, 3, 3])

        :param groups: which of the G groups.
        """
        return self.map(lambda tensor: tensor[groups])

    def repeated(self, count: int) -> ErrorNorm:
        """The norm of all groups ``count`` times over, one round after the other.

        >>> Norm(torch.eye(3)[None]).repeated(2).covariance.shape
        torch.Size([2, 3, 3])

        :param count: how many times.
        """
        return self.map(lambda tensor: torch.cat([tensor] * count))


@dataclass(frozen=True, eq=False)
class Norm(ErrorNorm):
    """A norm whose matrices are given as they are; without any it is the Frobenius norm.

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
    def tensors(self) -> tuple[Tensor, ...]:
        """See :attr:`ErrorNorm.tensors`."""
        return tuple(each for each in (self.covariance, self.gradient) if each is not None)

    @property
    def one_sided(self) -> Norm:
        """See :attr:`ErrorNorm.one_sided`."""
        return replace(self, gradient=None)

    def map(self, function: Callable[[Tensor], Tensor]) -> Norm:
        """See :meth:`ErrorNorm.map`.

        >>> Norm(torch.eye(3)[None]).map(torch.Tensor.double).covariance.dtype
        torch.float64
        """
        return Norm(*(None if each is None else function(each) for each in (self.covariance, self.gradient)))

    def apply(self, matrix: Tensor) -> Tensor:
        """See :meth:`ErrorNorm.apply`."""
        return _turned(matrix if self.covariance is None else matrix @ self.covariance.to(matrix), self.gradient)

    def squared(self, matrix: Tensor) -> Tensor:
        """See :meth:`ErrorNorm.squared`."""
        if self.covariance is None:
            return (_turned(matrix, self.gradient) * matrix).sum(dim=(-2, -1)).clamp_min(0)
        # Every pair of columns counts twice, so half of the symmetric covariance is enough.
        covariance, total = self.covariance.to(matrix), matrix.new_zeros(matrix.shape[:-2])
        for begin in range(0, matrix.shape[-1], BLOCK):
            block = slice(begin, begin + BLOCK)
            image = matrix[..., block] @ covariance[:, block, block]
            image.add_(matrix[..., :begin] @ covariance[:, :begin, block], alpha=2)
            total = total + _turned(image, self.gradient).mul_(matrix[..., block]).sum(dim=(-2, -1))
        return total.clamp_min(0)

    def gram(self, matrix: Tensor) -> Tensor:
        """See :meth:`ErrorNorm.gram`. The covariance is converted a block at a time."""
        product = _square(matrix)
        wide = None if self.covariance is None else matrix.double()
        for block in _blocks(matrix):
            narrow = matrix[:, :, block].double()
            seen = narrow if self.covariance is None or wide is None else wide @ self.covariance[:, :, block].double()
            product.baddbmm_(seen, narrow.mT)
        return product


@dataclass(frozen=True, eq=False)
class SampledNorm(ErrorNorm):
    r"""A norm whose covariance is that of few vectors, :math:`\Sigma = X^\top X + \rho I`: for very wide layers.

    All that a norm can do is done with the vectors; ``covariance`` is put together at each access, which takes the
    square of the layer's width. Linear layers come with this norm where their inputs are much wider than there are of
    them.

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
    gradient: Tensor | None = None

    @property
    def covariance(self) -> Tensor:
        """Put together anew, [G, S*K, S*K]."""
        covariance = self.vectors.mT @ self.vectors
        covariance.diagonal(dim1=-2, dim2=-1).add_(self.ridge[:, None])
        return covariance

    @property
    def weighted(self) -> bool:
        """Always; the covariance need not be put together to know."""
        return True

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """See :attr:`ErrorNorm.tensors`."""
        return (self.vectors, self.ridge) if self.gradient is None else (self.vectors, self.ridge, self.gradient)

    @property
    def one_sided(self) -> SampledNorm:
        """See :attr:`ErrorNorm.one_sided`."""
        return replace(self, gradient=None)

    def map(self, function: Callable[[Tensor], Tensor]) -> SampledNorm:
        """See :meth:`ErrorNorm.map`."""
        return SampledNorm(*(function(each) for each in self.tensors))

    def apply(self, matrix: Tensor) -> Tensor:
        """See :meth:`ErrorNorm.apply`."""
        vectors = self.vectors.to(matrix)
        image = (matrix @ vectors.mT) @ vectors + self.ridge.to(matrix)[:, None, None] * matrix
        return _turned(image, self.gradient)

    def squared(self, matrix: Tensor) -> Tensor:
        """See :meth:`ErrorNorm.squared`."""
        outputs = Norm(gradient=self.gradient)
        seen = outputs.squared(matrix @ self.vectors.to(matrix).mT)
        return seen + self.ridge.to(matrix) * outputs.squared(matrix)

    def gram(self, matrix: Tensor) -> Tensor:
        """See :meth:`ErrorNorm.gram`."""
        plain = _square(matrix)
        seen = plain.new_zeros(*matrix.shape[:2], self.vectors.shape[1])
        for block in _blocks(matrix):
            narrow = matrix[:, :, block].double()
            plain.baddbmm_(narrow, narrow.mT)
            seen.baddbmm_(narrow, self.vectors[:, :, block].double().mT)
        return plain.mul_(self.ridge.double()[:, None, None]).baddbmm_(seen, seen.mT)


def _turned(matrix: Tensor, gradient: Tensor | None) -> Tensor:
    """Gamma W; the matrix itself where there is no gradient."""
    return matrix if gradient is None else gradient.to(matrix) @ matrix


def _square(matrix: Tensor) -> Tensor:
    """Zeros for products of the rows of [G, T, N] with each other."""
    return torch.zeros(*matrix.shape[:2], matrix.shape[1], dtype=torch.float64, device=matrix.device)


def _blocks(matrix: Tensor) -> list[slice]:
    columns = matrix.shape[-1]
    step = max(1, min(BLOCK, columns // 4))
    return [slice(begin, begin + step) for begin in range(0, columns, step)]
