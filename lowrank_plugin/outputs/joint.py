# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Several outputs side by side in one matrix, and the sum of their losses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_plugin.outputs.losses import Loss


@dataclass(frozen=True)
class Layout:
    """Where tensors stand in a matrix, one row a sample.

    :param shapes: of the tensors, without the axis of the samples.
    :param together: whether the tensors do not agree on the number of samples: all are one row.
    """

    shapes: tuple[tuple[int, ...], ...]
    together: bool = False

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Layout:
        """The layout of some tensors.

        >>> Layout.of([torch.zeros(8, 3), torch.zeros(8, 2, 5)])
        Layout(shapes=((3,), (2, 5)), together=False)

        :param tensors: of at least one axis.
        """
        together = len({len(each) for each in tensors}) > 1
        return cls(tuple(tuple(each.shape[0 if together else 1 :]) for each in tensors), together)

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors side by side.

        :param tensors: [B, ...] each.
        :return: [B, n]; [1, n] where they are together.
        """
        return torch.cat([each.reshape(1 if self.together else len(each), -1) for each in tensors], dim=1)

    def parted(self, matrix: Tensor) -> list[Tensor]:
        """The tensors again.

        :param matrix: [B, n].
        """
        sizes = [torch.Size(shape).numel() for shape in self.shapes]
        lead = () if self.together else (len(matrix),)
        parts = matrix.split(sizes, dim=1)
        return [part.reshape(*lead, *shape) for part, shape in zip(parts, self.shapes, strict=True)]


@dataclass(frozen=True)
class Joint:
    """The sum of the losses of several outputs.

    :param layout: where these stand.
    :param losses: one for each.
    """

    layout: Layout
    losses: tuple[Loss, ...]

    @property
    def unit(self) -> str:
        """The units of all of them."""
        return unit_of(loss.unit for loss in self.losses)

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """Their sum, a scalar."""
        outputs, targets = self.layout.parted(output), self.layout.parted(target)
        terms = [loss.value(*each) for loss, *each in zip(self.losses, outputs, targets, strict=True)]
        return torch.stack(terms).sum()

    def slope(self, output: Tensor, target: Tensor) -> Tensor:
        """Their gradients, side by side."""
        outputs, targets = self.layout.parted(output), self.layout.parted(target)
        return self._joined([loss.slope(*each) for loss, *each in zip(self.losses, outputs, targets, strict=True)])

    def curvature(self, output: Tensor, tangent: Tensor) -> Tensor:
        """The second derivative of each times its part of the tangent."""
        outputs, tangents = self.layout.parted(output), self.layout.parted(tangent)
        return self._joined([loss.curvature(*each) for loss, *each in zip(self.losses, outputs, tangents, strict=True)])

    def probe(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Probes of each, independent of one another."""
        parts = zip(self.losses, self.layout.parted(output), strict=True)
        return self._joined([loss.probe(each, generator) for loss, each in parts])

    def drawn(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Slopes for targets drawn for each, independent of one another."""
        parts = zip(self.losses, self.layout.parted(output), strict=True)
        return self._joined([loss.drawn(each, generator) for loss, each in parts])

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        return self.layout.joined(parts)


def unit_of(units: Iterable[str]) -> str:
    """The unit of a sum.

    >>> unit_of(["nats", "nats"]), unit_of(["relative squared error", "nats"])
    ('nats', 'nats + relative squared error')

    :param units: of what is added up, at least one.
    """
    return " + ".join(sorted(set(units)))
