# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Streaming mean and covariance of vectors, and mean and variance of channels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_plugin.errors import CalibrationError

_BLOCKS = 4
_PART = 1 << 18


class Moments:
    """Streaming mean and covariance of vectors, one pair for each group of a layer.

    Products are taken in the vectors' dtype and summed in float64. Vectors are first shifted by the mean of the first
    batch, so a large mean does not cost digits of the covariance.

    >>> moments = Moments()
    >>> moments.add(torch.tensor([[[1.0, 2.0]], [[3.0, 2.0]]]))
    >>> moments.mean, moments.covariance
    (tensor([[2., 2.]], dtype=torch.float64), tensor([[[1., 0.], [0., 0.]]], dtype=torch.float64))

    :param count: how many vectors were seen.
    :param shift: what is taken off each vector [G, D]; None before the first.
    :param sums: of the shifted vectors [G, D], float64.
    :param products: sum of the shifted vectors' products with themselves [G, D, D], float64; the upper triangle counts.
    """

    def __init__(
        self,
        count: int = 0,
        shift: Tensor | None = None,
        sums: Tensor | None = None,
        products: Tensor | None = None,
    ) -> None:
        self.count, self.shift, self.sums, self.products = count, shift, sums, products

    @property
    def nbytes(self) -> int:
        """What the sums take."""
        return sum(each.nbytes for each in (self.shift, self.sums, self.products) if each is not None)

    def add(self, vectors: Tensor) -> None:
        """Take in vectors.

        :param vectors: [N, G, D], float32 or float64, on any device.
        """
        if not vectors.shape[0]:
            return
        if self.shift is None or self.sums is None or self.products is None:
            self.shift = vectors.mean(dim=0)
            self.sums = torch.zeros_like(self.shift, dtype=torch.float64)
            width = vectors.shape[-1]
            self.products = self.sums.new_zeros(vectors.shape[1], width, width)
        centred = (vectors - self.shift).movedim(1, 0)
        self.sums += centred.sum(dim=1)
        _add_gram(self.products, centred)
        self.count += vectors.shape[0]

    def moments(self) -> Moments:
        """These themselves."""
        return self

    def about(self, shift: Tensor) -> Moments:
        """The same moments of the same vectors, held relative to another shift and on its device.

        :param shift: [G, D].
        """
        old, sums, products = (each.to(shift.device) for each in self._state())
        step = old.double() - shift.double()
        products = products + outer(sums, step) + outer(step, sums) + self.count * outer(step, step)
        return Moments(self.count, shift, sums + self.count * step, products)

    def __add__(self, other: Moments) -> Moments:
        if not isinstance(other, Moments):
            return NotImplemented
        if not (self.count and other.count):
            return self if self.count else other
        shift, sums, products = self._state()
        _, more, further = other.about(shift)._state()
        return Moments(self.count + other.count, shift, sums + more, products + further)

    @property
    def finite(self) -> bool:
        """Whether any vector was seen and all were finite."""
        return self.sums is not None and bool(torch.isfinite(self.sums).all())

    @property
    def mean(self) -> Tensor:
        """[G, D], float64."""
        shift, total, _ = self._state()
        return shift.double() + total / self.count

    @property
    def covariance(self) -> Tensor:
        """The centred covariance [G, D, D], float64, exactly symmetric."""
        _, total, products = self._state()
        offset = total / self.count
        # in place, because this may be as large as everything else together
        upper = (products / self.count).sub_(outer(offset, offset)).triu_()
        return upper.add_(torch.triu(upper, diagonal=1).mT)

    @property
    def variance(self) -> Tensor:
        """The diagonal of the covariance [G, D], float64."""
        _, total, products = self._state()
        return products.diagonal(dim1=-2, dim2=-1) / self.count - (total / self.count) ** 2

    def _state(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.shift is None or self.sums is None or self.products is None:
            msg = "No vectors have been added yet, so there are no moments."
            raise CalibrationError(msg)
        return self.shift, self.sums, self.products


def _add_gram(total: Tensor, vectors: Tensor) -> None:
    """Add ``vectors.mT @ vectors`` to the upper triangle, block column by block column: the rest is its mirror."""
    width = vectors.shape[-1]
    step = max(256, math.ceil(width / _BLOCKS))
    for start in range(0, width, step):
        stop = min(start + step, width)
        total[..., :stop, start:stop] += vectors[..., :stop].mT @ vectors[..., start:stop]


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and variance of each channel. A sum of two is that of both sets of vectors together.

    >>> first, second = (ChannelStatistics.of(torch.tensor([[value, 5.0]])) for value in (1.0, 3.0))
    >>> (first + second).mean, (first + second).variance
    (tensor([2., 5.], dtype=torch.float64), tensor([1., 0.], dtype=torch.float64))

    :param count: how many vectors.
    :param mean: [C], float64.
    :param variance: [C], float64.
    """

    count: int
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, vectors: Tensor, channel_axes: int = 1) -> ChannelStatistics:
        """Those of vectors, computed in their dtype, at least float32.

        :param vectors: [*positions, *channels], any strides.
        :param channel_axes: how many trailing axes count channels; they are flattened.
        """
        axes = tuple(range(vectors.dim() - channel_axes))
        count = math.prod(vectors.shape[: len(axes)])
        shift = vectors.sum(axes, dtype=working(vectors[:0]).dtype) / count
        # twice over the data, in parts that stay in the cache: many times faster than torch.var_mean across strides
        parts = vectors.split(max(1, _PART // max(1, vectors[:1].numel())))
        first, second = shift.new_zeros(shift.shape, dtype=torch.float64), torch.zeros_like(shift, dtype=torch.float64)
        for part in parts:
            centred = part - shift
            first += centred.sum(axes)
            second += centred.square_().sum(axes)
        offset = first / count
        return cls(count, (shift.double() + offset).flatten(), (second / count - offset.square()).flatten())

    def to(self, device: torch.device) -> ChannelStatistics:
        """The same on another device."""
        return ChannelStatistics(self.count, self.mean.to(device), self.variance.to(device))

    def __add__(self, other: ChannelStatistics) -> ChannelStatistics:
        count = self.count + other.count
        share, delta = other.count / count, other.mean - self.mean
        spread = self.variance * (1 - share) + other.variance * share
        return ChannelStatistics(count, self.mean + share * delta, spread + share * (1 - share) * delta.square())


def outer(left: Tensor, right: Tensor) -> Tensor:
    """Products of all pairs of entries.

    :param left: [..., A].
    :param right: [..., B].
    :return: [..., A, B].
    """
    return left.unsqueeze(-1) * right.unsqueeze(-2)


def working(tensor: Tensor) -> Tensor:
    """In float64 if it is, otherwise in float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
