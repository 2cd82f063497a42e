# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The input vectors of layers that are much wider than there are of them, kept as they are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lowrank_plugin.errors import CalibrationError
from lowrank_plugin.layers.survey import Layer
from lowrank_plugin.statistics.moments import Moments

_FEW = 4
"""A layer's width over the number of its vectors from which on they are kept: less than an eighth of the products."""


class Vectors:
    """A layer's input vectors; they have the moments that :class:`Moments` would have, but take much less memory.

    >>> seen = Vectors(torch.tensor([[[1.0, 2.0, 0.0, 0.0]], [[3.0, 2.0, 0.0, 0.0]]]))
    >>> seen.count, seen.mean, round(float(seen.covariance[0, 0, 0]), 9)
    (2, tensor([[2., 2., 0., 0.]], dtype=torch.float64), 1.0)

    :param rows: the vectors [N, G, D], float32 or float64; None for none yet.
    """

    def __init__(self, rows: Tensor | None = None) -> None:
        self._parts = [] if rows is None else [rows]

    @classmethod
    def expected(cls, layer: Layer, samples: int, positions: float) -> int | None:
        """How many vectors there will be, where keeping so few is best; None for others, and for layers with taps.

        :param layer: with the sizes of its outputs in the example run.
        :param samples: how many samples there will be in all.
        :param positions: vectors wanted, as a multiple of the layer's width.
        """
        shape = layer.shape
        if shape.kernel_size:
            return None
        rows = sum(math.prod(after[1:]) // (shape.groups * shape.out_channels) for _, after in layer.calls)
        count = math.ceil(min(positions * shape.in_channels, samples * rows))
        return count if cls.few(count, shape.in_channels) else None

    @staticmethod
    def few(count: int, width: int) -> bool:
        """Whether so many vectors of a width are better kept than their products."""
        return _FEW * count <= width

    def add(self, vectors: Tensor) -> None:
        """Take in vectors.

        :param vectors: [N, G, D], float32 or float64, on any device; copied, for the network may change its own.
        """
        if len(vectors):
            self._parts.append(vectors.clone())

    @property
    def nbytes(self) -> int:
        """What the vectors take."""
        return sum(part.nbytes for part in self._parts)

    @property
    def count(self) -> int:
        """How many vectors were seen."""
        return sum(len(part) for part in self._parts)

    @property
    def rows(self) -> Tensor:
        """All of them [N, G, D].

        :raises CalibrationError: where there are none.
        """
        if not self._parts:
            msg = "No vectors have been added yet, so there are no moments."
            raise CalibrationError(msg)
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts)]
        return self._parts[0]

    @property
    def finite(self) -> bool:
        """Whether any vector was seen and all were finite."""
        return self.count > 0 and bool(torch.isfinite(self.rows).all())

    @property
    def mean(self) -> Tensor:
        """[G, D], float64."""
        return self.rows.double().mean(dim=0)

    @property
    def root(self) -> Tensor:
        """X with the centred covariance ``X.mT @ X``: [G, N, D], float64."""
        return (self.rows.double() - self.mean).div_(math.sqrt(self.count)).movedim(1, 0)

    @property
    def covariance(self) -> Tensor:
        """The centred covariance [G, D, D], float64: as large as keeping the vectors is meant to avoid."""
        root = self.root
        return root.mT @ root

    def moments(self) -> Vectors:
        """These themselves."""
        return self

    def products(self) -> Moments:
        """The same as sums of products."""
        moments = Moments()
        moments.add(self.rows)
        return moments

    def __add__(self, other: Any) -> Vectors | Moments:
        if not isinstance(other, Vectors | Moments):
            return NotImplemented
        if not (self.count and other.count):
            return self if self.count else other
        width = self.rows.shape[-1]
        if isinstance(other, Vectors) and self.few(self.count + other.count, width):
            return Vectors(torch.cat([self.rows, other.rows.to(self.rows.device)]))
        return self.products() + (other.products() if isinstance(other, Vectors) else other)

    __radd__ = __add__


Inputs = Moments | Vectors
"""What was seen of a layer's input vectors: ``count``, ``mean``, ``covariance`` and ``finite`` of either."""
