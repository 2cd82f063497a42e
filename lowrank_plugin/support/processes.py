# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Work divided among the processes of ``torch.distributed``; without it everything here hands back what it was given.

Every process runs the same flow with the same model, data and settings. What takes long is divided, and its results are
exchanged at once, so that all processes go on with the same values.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from lowrank_plugin.errors import LowRankError

T = TypeVar("T")


def processes() -> int:
    """How many there are; 1 where ``torch.distributed`` was not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share(items: Sequence[T]) -> list[tuple[int, T]]:
    """This process's part of items, each with its place among all of them.

    Items are dealt out like cards, so that with 2 processes the second has items 1, 3, 5 and so on.

    >>> share(["a", "b"])
    [(0, 'a'), (1, 'b')]
    """
    numbered = list(enumerate(items))
    return numbered if processes() == 1 else numbered[place() :: processes()]


def place() -> int:
    """This process's place among all; 0 where it is the only one."""
    return 0 if processes() == 1 else dist.get_rank()


def in_step(items: Sequence[T]) -> list[T | None]:
    """This process's part of items, as :func:`share` has it; None at its end where other processes have one more.

    >>> in_step(["a", "b"])
    ['a', 'b']
    """
    mine: list[T | None] = [item for _, item in share(items)]
    return mine + [None] * (math.ceil(len(items) / processes()) - len(mine))


def gathered(value: T) -> list[T]:
    """The values of all processes, in their order; tensors of the others are on the CPU.

    Every process must call this, or the others wait for it. Without ``torch.distributed`` there is one value:

    >>> gathered(3)
    [3]

    :param value: this process's own, anything that can be pickled.
    """
    if processes() == 1:
        return [value]
    buffer, received = io.BytesIO(), [b""] * processes()
    torch.save(value, buffer)
    dist.all_gather_object(received, buffer.getvalue())
    # weights_only is for files of strangers; these bytes are from this very program
    return [torch.load(io.BytesIO(each), map_location="cpu", weights_only=False) for each in received]


def agreed(value: T) -> T:
    """The value of the first process, in all of them.

    Sums over the same numbers may differ in their last digits from one machine to another, and measured times always
    do. Whatever decides what is done next must be the same everywhere, or the processes part ways.

    >>> agreed(0.5)
    0.5

    :param value: this process's own, anything that can be pickled.
    """
    return value if processes() == 1 else gathered(value)[0]


def together(work: Callable[[], T]) -> T:
    """Do this process's part of some work and wait until all have done theirs; where one fails, all fail.

    Without it, a process whose part has failed would be gone, and the others would wait for it forever.

    >>> together(lambda: "done")
    'done'

    :param work: called without arguments; it must not exchange anything itself.
    :return: what it returned here.
    :raises LowRankError: where another process failed; naming it and the cause.
    """
    if processes() == 1:
        return work()
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:  # noqa: BLE001 - whatever it is, the others must hear of it; it is raised again below
        failure = error
    causes = gathered(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for rank, cause in enumerate(causes):
        if cause is not None:
            msg = f"Process {rank} of {processes()} failed. {cause}"
            raise LowRankError(msg)
    return result


def divided(work: Callable[[list[str]], Mapping[str, T]], names: Sequence[str]) -> dict[str, T]:
    """Results for all names, each worked out by one process and sent to the others.

    >>> divided(lambda mine: {name: len(name) for name in mine}, ["conv1", "fc"])
    {'conv1': 5, 'fc': 2}

    :param work: called once with this process's names, returns the result for each; results can be pickled.
    :param names: the same in every process, no name twice.
    :return: in the order of the names.
    :raises LowRankError: where another process failed.
    """
    mine = together(lambda: dict(work([name for _, name in share(names)])))
    found = {name: result for part in gathered(mine) for name, result in part.items()}
    return {name: found[name] for name in names}


def summed(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Sums over all processes of tensors by name; one that a process lacks counts as zeros there.

    :param tensors: of one shape for each name.
    :param device: of the result.
    """
    if processes() == 1:
        return dict(tensors)
    known = {name: like for part in gathered(_shapes(tensors)) for name, like in part.items()}
    totals = {}
    for name, (shape, dtype) in sorted(known.items()):
        totals[name] = tensors[name].clone() if name in tensors else torch.zeros(shape, dtype=dtype, device=device)
        dist.all_reduce(totals[name])
    return totals


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
