# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What every decomposer does before and after its mathematics: checks, rank grids and the record of a fit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from lowrank_hooks import Factorization, KernelShape, Problem, Rank, Solution, StageShape, Status

T = TypeVar("T")

_SEEN = 1024
"""Columns of the images under a covariance that :meth:`lowrank_hooks.Norm.squared` holds at once: two blocks."""


def check_rank(rank: Rank, length: int, name: str) -> None:
    """Raise unless ``rank`` has the right length and positive entries.

    >>> check_rank((4,), 1, "svd")

    :param rank: what the user gave.
    :param length: how many numbers the decomposer wants.
    :param name: the decomposer's name in messages.
    :raises ValueError: for a wrong length or an entry below one.
    """
    if len(rank) != length or any(int(entry) != entry or entry < 1 for entry in rank):
        msg = f"{name} takes {length} positive whole number(s) as rank, not {tuple(rank)}."
        raise ValueError(msg)


def check_dtype(problem: Problem) -> None:
    """Raise unless the kernel is float32 or float64.

    :param problem: the problem.
    :raises ValueError: for any other dtype.
    """
    if problem.kernel.dtype not in (torch.float32, torch.float64):
        msg = f"A kernel must be float32 or float64 to be factorised, not {problem.kernel.dtype}: convert it first."
        raise ValueError(msg)


def check_alike(problems: Sequence[Problem]) -> None:
    """Raise unless problems can be solved together: of one shape, dtype, device and kind of norm, asked alike.

    >>> check_alike([Problem(torch.ones(1, 2, 2)), Problem(torch.ones(1, 2, 3))])
    Traceback (most recent call last):
    ...
    ValueError: Problems can be solved together only where shape, dtype, device, norm and options are the same. ...

    :param problems: one or more, float32 or float64.
    :raises ValueError: for none, problems that differ, or another dtype.
    """
    if not problems:
        msg = "There is no problem to solve: give one at least."
        raise ValueError(msg)
    for problem in problems:
        check_dtype(problem)
    kinds = [
        (each.shape, each.kernel.dtype, each.kernel.device, each.norm.name, each.seed, each.rank_multiple, each.slack)
        for each in problems
    ]
    other = next((kind for kind in kinds if kind != kinds[0]), None)
    if other is not None:
        different = next(pair for pair in zip(kinds[0], other, strict=True) if pair[0] != pair[1])
        msg = (
            "Problems can be solved together only where shape, dtype, device, norm and options are the same. "
            f"Here one has {different[0]}, another {different[1]}: solve them apart."
        )
        raise ValueError(msg)


def is_finite(problem: Problem) -> bool:
    """Whether kernel and norm are free of NaN and infinity; allocates nothing of their size.

    >>> is_finite(Problem(torch.full((1, 2, 2), float("nan"))))
    False

    :param problem: the problem.
    :return: the answer.
    """
    tensors = (problem.kernel, *problem.norm.tensors)
    # min and max hand a NaN on
    return all(bool(torch.isfinite(torch.stack(t.aminmax())).all()) for t in tensors if t.numel())


def each_finite(
    problems: Sequence[Problem], solve: Callable[[list[Problem]], Sequence[T]], otherwise: Callable[[], T]
) -> list[T]:
    """Solve together the problems that are free of NaN and infinity.

    :param problems: the problems.
    :param solve: called with those, if there are any.
    :param otherwise: gives the answer to the others.
    :return: an answer for each problem.
    """
    finite = [is_finite(problem) for problem in problems]
    sound = [problem for problem, answer in zip(problems, finite, strict=True) if answer]
    solved = iter(solve(sound) if sound else ())
    return [next(solved) if answer else otherwise() for answer in finite]


def rank_grid(largest: int, multiple: int, points: int | None = None) -> list[int]:
    """Ranks for a curve: multiples of ``multiple`` up to ``largest``, thinned evenly, and ``largest`` itself.

    >>> rank_grid(30, 8), rank_grid(512, 8, 4)
    ([8, 16, 24, 30], [128, 256, 384, 512])

    :param largest: the largest useful rank.
    :param multiple: what ranks should be multiples of.
    :param points: about how many ranks there may be; None for no limit.
    :return: ascending ranks.
    """
    if points is not None:
        multiple *= max(1, math.ceil(largest / (multiple * points)))
    return sorted({*range(multiple, largest + 1, multiple), largest})


def measured_error(problem: Problem, chain: Factorization, energy: float | None = None) -> float:
    """The relative error of a chain, as :meth:`Problem.relative_error`, for one covariance product less.

    :param problem: the problem as it was asked.
    :param chain: its approximation.
    :param energy: squared norm of the kernel, where it is known.
    :return: the relative error.
    """
    difference = chain.to_kernel().to(problem.kernel).reshape_as(problem.matrix).sub_(problem.matrix)
    error = float(problem.norm.squared(difference).double().sum())
    total = float(problem.energy if energy is None else energy)
    return math.sqrt(error / total) if total > 0 else math.sqrt(error)


def record(
    problem: Problem,
    chain: Factorization,
    status: Status,
    started: float,
    peak_bytes: int,
    errors: Sequence[float] = (),
    energy: float | None = None,
) -> Solution:
    """The solution with the statistics that all decomposers share.

    :param problem: the problem as it was asked.
    :param chain: the answer, on the problem's device.
    :param status: how the fit ended.
    :param started: ``time.perf_counter()`` at its beginning.
    :param peak_bytes: the stated peak extra memory.
    :param errors: relative errors of the iterates by the solver's account, the start first; empty for a closed form.
    :param energy: squared norm of the kernel, where it is known.
    :return: the solution.
    """
    if not bool(torch.isfinite(torch.stack([stage.weight.abs().amax() for stage in chain.stages])).all()):
        return Solution(None, Status.NONFINITE_INPUT, {"seconds": time.perf_counter() - started})
    statistics = {
        "relative_error": measured_error(problem, chain, energy),
        "errors": [float(error) for error in errors],
        "iterations": max(len(errors) - 1, 0),
        "peak_bytes": int(peak_bytes),
        "seconds": time.perf_counter() - started,
    }
    return Solution(chain, status, statistics)


def extra_side(shape: KernelShape, norm: str, itemsize: int) -> int:
    """Bytes that the output side of a norm takes throughout a fit: the kernel seen through it, its root and inverse.

    :param shape: the kernel's sizes.
    :param norm: ``Norm.name``.
    :param itemsize: bytes of one entry.
    :return: bytes; 0 for a one-sided norm.
    """
    return itemsize * (shape.parameters + 3 * shape.groups * shape.out_channels**2) if norm == "two-sided" else 0


def final_bytes(shape: KernelShape, stages: Sequence[StageShape], norm: str, itemsize: int) -> int:
    """Extra memory of what ends every fit: scaling the chain and measuring its error.

    :param shape: the kernel's sizes.
    :param stages: the chain's, for one group.
    :param norm: ``Norm.name``.
    :param itemsize: bytes of one entry.
    :return: bytes.
    """
    chain = sum(stage.parameters for stage in stages)
    kernel = shape.parameters // shape.groups
    columns = kernel // shape.out_channels
    # The difference, and its image under the norm or two blocks of that.
    weighted = norm in ("covariance", "two-sided")
    image = shape.out_channels * min(columns, _SEEN) if weighted else kernel
    measured, before, taps = kernel + image, 0, 1
    for stage in stages:
        taps *= math.prod(stage.kernel_size)
        product = stage.out_channels * shape.in_channels * taps
        # A product with taps comes out in another order than it is needed in.
        extra = max(stage.parameters, product) if math.prod(stage.kernel_size) > 1 else 0
        measured, before = max(measured, before + product + extra), product
    scaled = max(chain, *(stage.parameters for stage in stages))
    small = 16 * sum(stage.parameters // math.prod(stage.kernel_size) for stage in stages)
    # The way back from the triangular factor that stands for a kernel with more outputs than inputs.
    lift = kernel + columns**2 if columns < shape.out_channels else 0
    whole = itemsize * (chain + lift + max(measured, scaled)) + small
    return shape.groups * whole + extra_side(shape, norm, itemsize)


def non_finite(started: float) -> Solution:
    """The answer to a problem that contains NaN or infinity.

    :param started: ``time.perf_counter()`` at the beginning of the fit.
    :return: a solution without a value.
    """
    return Solution(None, Status.NONFINITE_INPUT, {"seconds": time.perf_counter() - started})
