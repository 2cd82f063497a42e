# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What a decomposer is asked, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lowrank_hooks.factorization import Factorization, StageShape
from lowrank_hooks.norm import ErrorNorm, Norm, NormKind

Rank = tuple[int, ...]


@dataclass(frozen=True)
class KernelShape:
    """The sizes of a layer's kernel.

    >>> KernelShape(groups=1, out_channels=64, in_channels=32, kernel_size=(3, 3)).parameters
    18432

    :param groups: G, independent groups of the layer.
    :param out_channels: T, output channels of one group.
    :param in_channels: S, input channels of one group.
    :param kernel_size: taps on each spatial axis; empty for a linear layer.
    """

    groups: int
    out_channels: int
    in_channels: int
    kernel_size: tuple[int, ...] = ()

    @property
    def taps(self) -> int:
        """K, the number of kernel positions; 1 for a linear layer."""
        return math.prod(self.kernel_size)

    @property
    def parameters(self) -> int:
        """Number of weights of the dense kernel."""
        return self.groups * self.out_channels * self.in_channels * self.taps


@dataclass(frozen=True)
class Problem:
    """One kernel to approximate, in one norm. The decomposer must change nothing in it.

    >>> problem = Problem(torch.ones(1, 4, 3, 3, 3))
    >>> problem.shape.taps, problem.matrix.shape, float(problem.energy)
    (9, torch.Size([1, 4, 27]), 108.0)

    :param kernel: [G, T, S, *kernel], float32 or float64; its device is where the work is done.
    :param norm: the norm of the approximation error, its tensors on the kernel's device.
    :param seed: seed of the generator for whatever the decomposer draws.
    :param rank_multiple: ranks on the curve should be multiples of this.
    :param slack: how far, relative to the best residual, a stable decomposition may raise the residual to lower its
        sensitivity; None turns the stabilisation off.
    """

    kernel: Tensor
    norm: ErrorNorm = field(default_factory=Norm)
    seed: int = 0
    rank_multiple: int = 1
    slack: float | None = 0.02

    @property
    def shape(self) -> KernelShape:
        """The sizes of the kernel."""
        groups, out, inputs, *kernel = self.kernel.shape
        return KernelShape(groups, out, inputs, tuple(kernel))

    @property
    def matrix(self) -> Tensor:
        """The kernel as [G, T, S*K]."""
        return self.kernel.reshape(*self.kernel.shape[:2], -1)

    @property
    def energy(self) -> Tensor:
        """The squared norm of the whole kernel, summed over the groups: a scalar."""
        return self.norm.squared(self.matrix).sum()

    def generator(self) -> torch.Generator:
        """A fresh seeded generator on the CPU, so that draws do not depend on the device."""
        return torch.Generator().manual_seed(self.seed)

    def with_kernel(self, kernel: Tensor) -> Problem:
        """The same question about another kernel of the same shape."""
        return replace(self, kernel=kernel)

    def relative_error(self, factorization: Factorization) -> float:
        """The error of an approximation over the norm of the kernel, measured from its multiplied-out kernel.

        :param factorization: an approximation of the kernel.
        :return: a number from 0; 0 for a zero kernel that is met exactly.
        """
        difference = self.matrix - factorization.to_kernel().to(self.kernel).reshape_as(self.matrix)
        error, energy = self.norm.squared(difference).sum(), self.energy
        return float((error / energy).sqrt()) if energy > 0 else float(error.sqrt())


@dataclass(frozen=True)
class Point:
    """One choice on a decomposer's error curve.

    >>> Point(rank=(8,), error=0.25)
    Point(rank=(8,), error=0.25)

    :param rank: what ``fit`` is to be called with.
    :param error: predicted relative error, norm of the difference over norm of the kernel; an upper bound is best.
    """

    rank: Rank
    error: float


class Status(Enum):
    """How a fit ended. The value is the sentence users read."""

    CONVERGED = "Converged."
    MAX_ITERATIONS = "Stopped at the step limit; more steps may lower the error a little."
    STAGNATED = "Stagnated: a step no longer lowered the error, though the tolerance was not met."
    DEGENERATE = (
        "Degenerate: huge components cancel each other, so rounding and fine-tuning are unsafe. "
        "Turn on stability (a slack above 0) or lower the rank."
    )
    RANK_DEFICIENT = "Rank deficient: the kernel, seen through the norm, has a lower rank than was asked for."
    NONFINITE_INPUT = "Non-finite input: the kernel or its statistics contain NaN or infinity."
    NOT_WORTHWHILE = "Not worthwhile: the factors would be no smaller than the layer itself."


@dataclass(frozen=True)
class Solution:
    """The outcome of a fit.

    >>> failed = Solution(None, Status.NONFINITE_INPUT)
    >>> failed.status.value
    'Non-finite input: the kernel or its statistics contain NaN or infinity.'

    :param value: the factors; None where there is nothing usable.
    :param status: how the fit ended.
    :param statistics: numbers about the fit, plain JSON values. Usual keys: ``relative_error``, ``iterations``,
        ``sensitivity``, ``component_energy`` (sum of squared component norms over the squared norm of the kernel).
    """

    value: Factorization | None
    status: Status
    statistics: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Decomposer(Protocol):
    """Pure tensor work: how a kernel is approximated by a chain of smaller ones.

    A rank above the largest useful one is lowered to it; a rank of zero or less, or of the wrong length, raises
    :class:`ValueError`.
    """

    def structure(self, shape: KernelShape, rank: Rank) -> tuple[StageShape, ...]:
        """The sizes of the stages that ``fit`` returns for this rank, for one group, without solving anything."""
        ...

    def curve(self, problem: Problem) -> Sequence[Point]:
        """Predicted errors at several ranks, in any order; empty where the decomposer does not fit the kernel."""
        ...

    def fit(self, problem: Problem, rank: Rank) -> Solution:
        """Approximate the kernel at one rank."""
        ...


@runtime_checkable
class BatchDecomposer(Decomposer, Protocol):
    """A decomposer that is faster where problems of one shape come together. Optional: others are asked one by one.

    The problems of a call are alike in shape, dtype, device, kind of norm, seed, rank multiple and slack. But for
    rounding, what is answered to one must not depend on which others come with it.
    """

    def curves(self, problems: Sequence[Problem]) -> Sequence[Sequence[Point]]:
        """What ``curve`` answers to each problem."""
        ...

    def fits(self, problems: Sequence[Problem], rank: Rank) -> Sequence[Solution]:
        """What ``fit`` answers to each problem at this rank."""
        ...


@runtime_checkable
class PeakMemory(Protocol):
    """A decomposer that states how much memory its fits take. Optional: of others a plan says nothing.

    >>> class Copies:
    ...     def peak_bytes(self, shape, rank, kind, itemsize):
    ...         return (2 if kind.weighted else 1) * shape.parameters * itemsize
    >>> Copies().peak_bytes(KernelShape(1, 64, 32, (3, 3)), (8,), Norm().kind, 4)
    73728
    """

    def peak_bytes(self, shape: KernelShape, rank: Rank, kind: NormKind, itemsize: int) -> int:
        """The most memory, in bytes, that ``fit`` takes at once beyond the problem; an upper bound is best.

        :param shape: the sizes of the kernel.
        :param rank: what ``fit`` will be called with.
        :param kind: the kind of the problem's norm, ``problem.norm.kind``.
        :param itemsize: bytes of one entry of the kernel: 4 in float32, 8 in float64.
        """
        ...
