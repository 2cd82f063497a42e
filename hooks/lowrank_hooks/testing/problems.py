# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Small problems in every norm, awkward ones included."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_hooks import Norm, Problem, SampledNorm

KERNEL_SIZES: dict[int, tuple[int, ...]] = {0: (), 1: (3,), 2: (3, 3), 3: (2, 3, 2)}
"""The kernel used for each number of spatial axes."""

VARIANTS = ("frobenius", "covariance", "singular", "two-sided")
"""Norms to try: ``"singular"`` is a covariance that is blind to half of the directions."""

TELLING = ("singular", "two-sided")
"""Norms so far from the Frobenius norm that what is best in one is clearly not in the other."""


@dataclass(frozen=True)
class Case:
    """One problem that a decomposer is tried on.

    :param name: the id of the test.
    :param problem: the problem, float64 on the CPU.
    :param telling: whether a fit that is blind to the norm must be clearly worse than one that is not.
    """

    name: str
    problem: Problem
    telling: bool = False

    @property
    def refusable(self) -> bool:
        """Whether a decomposer may refuse it: any norm but the Frobenius norm."""
        return self.problem.norm.name != "frobenius"


def make_problem(
    kernel_size: tuple[int, ...] = (3, 3),
    norm: str = "frobenius",
    *,
    groups: int = 1,
    out_channels: int = 6,
    in_channels: int = 5,
    seed: int = 0,
) -> Problem:
    """A problem whose kernel has falling singular values in every direction, as trained kernels have.

    >>> problem = make_problem((3,), "two-sided", groups=2)
    >>> problem.kernel.shape, problem.norm.name
    (torch.Size([2, 6, 5, 3]), 'two-sided')

    :param kernel_size: taps on each spatial axis; empty for a linear layer.
    :param norm: one of ``VARIANTS``, or ``"sampled"``: a covariance that is given by fewer vectors than it is wide.
    :param groups: groups of the layer.
    :param out_channels: outputs of one group.
    :param in_channels: inputs of one group.
    :param seed: of all draws.
    """
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(groups, out_channels, in_channels, *kernel_size, generator=generator, dtype=torch.float64)
    for axis in range(1, kernel.dim()):
        size = kernel.shape[axis]
        basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
        scale = 0.7 ** torch.arange(size, dtype=torch.float64)
        kernel = (kernel.movedim(axis, -1) @ (basis * scale) @ basis.mT).movedim(-1, axis)
    columns = kernel[0, 0].numel()
    if norm == "sampled":
        vectors = _vectors(groups, columns, columns // 2, generator)
        return Problem(kernel, SampledNorm(vectors, vectors.new_full((groups,), 0.01)), seed=seed)
    covariance = gradient = None
    if norm != "frobenius":
        samples = max(columns // 2, 1) if norm == "singular" else 2 * columns
        covariance = _moment(groups, columns, samples, generator)
    if norm == "two-sided":
        gradient = _moment(groups, out_channels, 2 * out_channels, generator)
    return Problem(kernel, Norm(covariance, gradient), seed=seed)


def _moment(groups: int, size: int, samples: int, generator: torch.Generator) -> Tensor:
    """The second moment [G, size, size] of random vectors."""
    vectors = _vectors(groups, size, samples, generator)
    moment = vectors.mT @ vectors
    return (moment + moment.mT) / 2


def _vectors(groups: int, size: int, samples: int, generator: torch.Generator) -> Tensor:
    """Random vectors [G, samples, size] whose entries differ in size, over the root of their number."""
    vectors = torch.randn(groups, samples, size, generator=generator, dtype=torch.float64)
    return vectors * 0.8 ** torch.arange(size, dtype=torch.float64) / samples**0.5


def cases(spatial_axes: Iterable[int]) -> list[Case]:
    """The problems for a decomposer.

    >>> [case.name for case in cases({0})][:3]
    ['linear-frobenius', 'linear-covariance', 'linear-singular']

    :param spatial_axes: the numbers of spatial axes it takes.
    :return: every number of axes in two norms, one of them in all norms, grouped, and with more outputs than inputs.
    """
    axes = sorted(spatial_axes)
    main = 2 if 2 in axes else axes[0]
    found = []
    for count in axes:
        label = "linear" if count == 0 else f"conv{count}d"
        for norm in VARIANTS if count == main else VARIANTS[:2]:
            found.append(Case(f"{label}-{norm}", make_problem(KERNEL_SIZES[count], norm), norm in TELLING))
    if 0 in axes:
        found.append(Case("linear-sampled", make_problem((), "sampled")))
    size = KERNEL_SIZES[main]
    found.append(Case("grouped", make_problem(size, "covariance", groups=2) if main else make_problem(size)))
    found.append(Case("pointwise-wide", make_problem((1,) * main, "covariance", out_channels=8, in_channels=3)))
    return found
