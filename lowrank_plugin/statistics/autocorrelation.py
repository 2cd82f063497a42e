# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Moments of all patches of a zero-padded convolution with stride 1, from correlations of its input with itself.

Two taps k and l of a patch see one map, displaced: their block of the covariance sums ``x[q] x[q + l - k]'`` over a box
of positions q, and pairs of taps with one displacement differ only in where their boxes end. So the boxes are cut into
pieces that do not overlap, one matrix product is taken for each piece, and every block is a sum of pieces. A 3x3 kernel
with padding 1 needs 29 products of [S, S], over at most 13 times the positions of the map, in place of 45 times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product

import torch
from torch import Tensor, nn

from lowrank_hooks import LayerAdapter, Windowed
from lowrank_plugin.statistics.moments import Moments, outer, working


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a convolution with stride 1.

    :param taps: of the kernel.
    :param dilation: distance of two taps.
    :param before: zeros in front of the map.
    :param size: positions of the map.
    :param out: positions of the output.
    """

    taps: int
    dilation: int
    before: int
    size: int
    out: int

    def box(self, first: int, second: int) -> tuple[int, int, int]:
        """The displacement from one tap to another, and where the first one is while both are inside the map.

        >>> Axis(taps=3, dilation=1, before=1, size=7, out=7).box(0, 0)
        (0, 0, 6)
        """
        step = (second - first) * self.dilation
        start = first * self.dilation - self.before
        low, high = max(0, -step, start), min(self.size, self.size - step, start + self.out)
        return step, low, max(low, high)

    @cached_property
    def pieces(self) -> list[tuple[int, int, int]]:
        """For each displacement the pieces that its boxes are made of: (displacement, start, stop).

        >>> Axis(taps=3, dilation=1, before=1, size=7, out=7).pieces
        [(-2, 2, 7), (-1, 1, 7), (0, 0, 1), (0, 1, 6), (0, 6, 7), (1, 0, 6), (2, 0, 5)]
        """
        ends: dict[int, set[int]] = {}
        for first, second in product(range(self.taps), repeat=2):
            step, low, high = self.box(first, second)
            ends.setdefault(step, set()).update((low, high) if low < high else ())
        return [(step, low, high) for step, cuts in sorted(ends.items()) for low, high in pairwise(sorted(cuts))]


Piece = tuple[tuple[int, int, int], ...]
"""(displacement, start, stop) on every axis."""


@dataclass(frozen=True)
class Geometry:
    """What correlations there are between the taps of a convolution.

    :param groups: G.
    :param channels: S, input channels of one group.
    :param axes: the spatial axes.
    """

    groups: int
    channels: int
    axes: tuple[Axis, ...]

    @classmethod
    def of(cls, adapter: LayerAdapter, module: nn.Module, inputs: torch.Size, outputs: torch.Size) -> Geometry | None:
        """That of a module for inputs of one size.

        :param adapter: how the module is seen.
        :param module: the module.
        :param inputs: shape of its input [B, G*S, *size].
        :param outputs: shape of its output [B, G*T, *out].
        :return: None where its patches are not windows of stride 1, or it gets a sample without a batch axis.
        """
        windows = adapter.windows(module) if isinstance(adapter, Windowed) else None
        if windows is None or any(window.stride != 1 for window in windows) or len(inputs) != len(windows) + 2:
            return None
        axes = tuple(
            Axis(window.taps, window.dilation, window.before, size, out)
            for window, size, out in zip(windows, inputs[2:], outputs[2:], strict=True)
        )
        groups, _, channels = adapter.kernel(module).shape[:3]
        return cls(groups, channels, axes)

    @cached_property
    def pieces(self) -> list[Piece]:
        """One of each two pieces that are mirror images of each other."""
        zero = (0,) * len(self.axes)
        every = product(*(axis.pieces for axis in self.axes))
        return [piece for piece in every if tuple(step for step, _, _ in piece) >= zero]

    @property
    def multiplications(self) -> int:
        """Multiply-accumulates for one sample."""
        return self.groups * self.channels**2 * sum(_positions(piece) for piece in self.pieces)

    @property
    def bytes(self) -> int:
        """What the sums need."""
        return 8 * self.groups * self.channels * (self.channels + 2) * len(self.pieces)

    @property
    def taps(self) -> int:
        """Of the kernel, in all."""
        return math.prod(axis.taps for axis in self.axes)


class Autocorrelation:
    """Streaming sums over the pieces of maps of one size; as precise as :class:`Moments`, of all positions.

    >>> from lowrank_plugin.layers.adapters import ConvAdapter
    >>> conv = torch.nn.Conv1d(1, 1, 3, padding=1)
    >>> seen = Autocorrelation(Geometry.of(ConvAdapter(), conv, torch.Size([1, 1, 4]), torch.Size([1, 1, 4])))
    >>> seen.add(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))
    >>> seen.moments().mean
    tensor([[1.5000, 2.5000, 2.2500]], dtype=torch.float64)

    :param geometry: of the layer.
    :param samples: how many maps were seen.
    :param shift: what is taken off each channel [G, S].
    :param sums: for each piece of the shifted channels at both of its ends [P, 2, G, S], float64.
    :param products: for each piece of the channels at its one end with those at the other [P, G, S, S], float64.
    """

    def __init__(
        self,
        geometry: Geometry,
        samples: int = 0,
        shift: Tensor | None = None,
        sums: Tensor | None = None,
        products: Tensor | None = None,
    ) -> None:
        self.geometry, self.samples = geometry, samples
        self.shift, self.sums, self.products = (
            torch.empty(0) if each is None else each for each in (shift, sums, products)
        )

    @property
    def nbytes(self) -> int:
        """What the sums take."""
        return self.shift.nbytes + self.sums.nbytes + self.products.nbytes

    def takes(self, inputs: Tensor) -> bool:
        """Whether maps are of the size this was made for.

        :param inputs: the layer's input.
        """
        return inputs.shape[2:] == torch.Size(axis.size for axis in self.geometry.axes)

    def add(self, inputs: Tensor) -> None:
        """Take in all patches of maps.

        :param inputs: [B, G*S, *size], any floating-point dtype, on any device.
        """
        if not len(inputs):
            return
        maps = working(inputs).unflatten(1, (self.geometry.groups, self.geometry.channels))
        spatial = tuple(range(3, maps.dim()))
        if not self.samples:
            self._start(maps.mean(dim=(0, *spatial)))
        # channels last, and the batch innermost of the positions: a slice of the first axis then needs no copy
        shift = self.shift.reshape(*maps.shape[1:3], *(1 for _ in spatial))
        maps = (maps - shift).permute(1, *spatial, 0, 2).contiguous()
        totals = maps.sum(dim=-2).double()
        inner: dict[Piece, list[int]] = {}
        for index, piece in enumerate(self.geometry.pieces):
            inner.setdefault(piece[1:], []).append(index)
        for rest, indices in inner.items():
            whole = (0, maps.shape[1])
            here = there = _sliced(maps, [whole, *((low, high) for _, low, high in rest)]).contiguous()
            if any(step for step, _, _ in rest):
                there = _sliced(maps, [whole, *((low + step, high + step) for step, low, high in rest)]).contiguous()
            for index in indices:
                self._add_piece(index, here, there)
        for index, piece in enumerate(self.geometry.pieces):
            for end in (0, 1):
                ranges = [(low + end * step, high + end * step) for step, low, high in piece]
                self.sums[index, end] += _sliced(totals, ranges).flatten(1, -2).sum(dim=1)
        self.samples += len(inputs)

    def _start(self, shift: Tensor) -> None:
        self.shift = shift
        groups, channels = shift.shape
        count = len(self.geometry.pieces)
        self.products = shift.new_zeros(count, groups, channels, channels, dtype=torch.float64)
        self.sums = shift.new_zeros(count, 2, groups, channels, dtype=torch.float64)

    def _add_piece(self, index: int, here: Tensor, there: Tensor) -> None:
        step, low, high = self.geometry.pieces[index][0]
        first = here[:, low:high].flatten(1, -2)
        second = there[:, low + step : high + step].flatten(1, -2)
        self.products[index] += first.mT @ second

    @property
    def count(self) -> int:
        """How many patches were seen."""
        return self.samples * math.prod(axis.out for axis in self.geometry.axes)

    @property
    def finite(self) -> bool:
        """Whether any map was seen and all were finite."""
        return self.samples > 0 and bool(torch.isfinite(self.sums).all())

    def about(self, shift: Tensor) -> Autocorrelation:
        """The same sums over the same maps, held relative to another shift and on its device.

        :param shift: [G, S].
        """
        old, sums, products = (each.to(shift.device) for each in (self.shift, self.sums, self.products))
        step = old.double() - shift.double()
        counts = [self.samples * _positions(piece) for piece in self.geometry.pieces]
        count = torch.tensor(counts, dtype=torch.float64, device=shift.device).reshape(-1, 1, 1, 1)
        products = products + outer(sums[:, 0], step) + outer(step, sums[:, 1]) + count * outer(step, step)
        return Autocorrelation(self.geometry, self.samples, shift, sums + count * step, products)

    def __add__(self, other: Autocorrelation) -> Autocorrelation:
        if not (self.samples and other.samples):
            return self if self.samples else other
        more = other.about(self.shift)
        return Autocorrelation(
            self.geometry,
            self.samples + other.samples,
            self.shift,
            self.sums + more.sums,
            self.products + more.products,
        )

    def moments(self) -> Moments:
        """Put the moments of the patches together, in the order of the layer's kernel."""
        if not self.samples:
            return Moments()
        taps, groups, channels = self.geometry.taps, *self.shift.shape
        shift = self.shift.double()
        products = shift.new_zeros(groups, channels, taps, channels, taps)
        sums = shift.new_zeros(groups, channels, taps)
        positions = [list(each) for each in product(*(range(axis.taps) for axis in self.geometry.axes))]
        inside = [self._pair(tap, tap) for tap in positions]
        every = self.count
        for first, second in product(range(taps), repeat=2):
            both = self._pair(positions[first], positions[second])
            # where a tap sees a zero of the padding, the difference from the shift is minus the shift
            alone = (inside[first].first - both.first, inside[second].second - both.second)
            neither = every - inside[first].count - inside[second].count + both.count
            block = both.products - outer(alone[0], shift) - outer(shift, alone[1]) + neither * outer(shift, shift)
            products[:, :, first, :, second] = block
        for tap in range(taps):
            sums[:, :, tap] = inside[tap].first - (every - inside[tap].count) * shift
        width = channels * taps
        repeated = self.shift.unsqueeze(-1).expand(groups, channels, taps).reshape(groups, width)
        return Moments(every, repeated, sums.reshape(groups, width), products.reshape(groups, width, width))

    def _pair(self, first: Sequence[int], second: Sequence[int]) -> _Pair:
        """Sums over the positions where two taps are inside of the map."""
        boxes = [axis.box(a, b) for axis, a, b in zip(self.geometry.axes, first, second, strict=True)]
        mirrored = tuple(step for step, _, _ in boxes) < (0,) * len(boxes)
        if mirrored:
            boxes = [(-step, low + step, high + step) for step, low, high in boxes]
        chosen = [index for index, piece in enumerate(self.geometry.pieces) if _within(piece, boxes)]
        count = self.samples * math.prod(high - low for _, low, high in boxes)
        total, (here, there) = self.products[chosen].sum(dim=0), self.sums[chosen].sum(dim=0)
        return _Pair(count, total.mT, there, here) if mirrored else _Pair(count, total, here, there)


@dataclass(frozen=True)
class _Pair:
    """Sums over all positions where both of two taps are inside of the map."""

    count: int
    products: Tensor
    first: Tensor
    second: Tensor


def _sliced(maps: Tensor, ranges: Sequence[tuple[int, int]]) -> Tensor:
    """A part of [G, *size, ...], cut on the axes of the map."""
    for axis, (low, high) in enumerate(ranges, start=1):
        maps = maps.narrow(axis, low, high - low)
    return maps


def _positions(piece: Piece) -> int:
    return math.prod(high - low for _, low, high in piece)


def _within(piece: Piece, boxes: Sequence[tuple[int, int, int]]) -> bool:
    return all(
        step == wanted and low <= start and stop <= high
        for (step, start, stop), (wanted, low, high) in zip(piece, boxes, strict=True)
    )
