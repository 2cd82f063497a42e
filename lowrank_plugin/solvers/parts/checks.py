# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What every decomposer looks at before its mathematics."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lowrank_hooks import Problem


def check_dtype(problem: Problem) -> None:
    """Raise unless the kernel is float32 or float64.

    >>> check_dtype(Problem(torch.ones(1, 2, 2).half()))
    Traceback (most recent call last):
    ...
    ValueError: A kernel must be float32 or float64 to be factorised, not torch.float16: convert it first.

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
