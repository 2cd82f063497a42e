# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Factorizations as TensorLy's tensors and back, and TensorLy's PyTorch backend without a global switch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowrank_hooks import Factorization, Stage
from lowrank_plugin.solvers.cp.diagnosis import chain_factors

if TYPE_CHECKING:
    from tensorly.cp_tensor import CPTensor
    from tensorly.tucker_tensor import TuckerTensor

TuckerPair = tuple[Tensor, Sequence[Tensor]]
"""The core, and a factor [size, rank] of each mode."""
CPPair = tuple[Tensor | None, Sequence[Tensor]]
"""The weights of the components [R], None for ones, and a factor [size, R] of each mode."""


@contextmanager
def pytorch_backend() -> Iterator[None]:
    """Let TensorLy compute with PyTorch in this thread only; its backend is the old one afterwards.

    ``tensorly.backend_context`` is not used because on leaving it sets the old backend for every thread.

    >>> import tensorly
    >>> before = tensorly.get_backend()
    >>> with pytorch_backend():
    ...     print(tensorly.get_backend())
    pytorch
    >>> tensorly.get_backend() == before
    True
    """
    import tensorly

    before = tensorly.get_backend()
    tensorly.set_backend("pytorch", local_threadsafe=True)
    try:
        yield
    finally:
        tensorly.set_backend(before, local_threadsafe=True)


def to_tucker_tensor(factorization: Factorization, group: int = 0) -> TuckerTensor:
    """One group of a Tucker-2 chain as a ``tensorly.tucker_tensor.TuckerTensor`` over (T, S, *kernel).

    >>> from lowrank_hooks import Problem
    >>> from lowrank_plugin.solvers.tucker2 import Tucker2
    >>> solution = Tucker2().fit(Problem(torch.ones(1, 6, 4, 3, 3)), (2, 2))
    >>> to_tucker_tensor(solution.value).rank
    (2, 2, 3, 3)

    :param factorization: a chain of one convolution with a 1x1 convolution before it, after it, or both.
    :param group: which group of the layer.
    :return: the core [R_T, R_S, *kernel] and the factors of all modes; those of missing stages and of the taps are
        identities.
    :raises ValueError: for any other chain.
    """
    from tensorly.tucker_tensor import TuckerTensor

    before, core, after = _split(factorization)
    weight = core.weight[group]

    def identity(size: int) -> Tensor:
        return torch.eye(size, dtype=weight.dtype, device=weight.device)

    factors = [
        identity(weight.shape[0]) if after is None else after.weight[group].flatten(1),
        identity(weight.shape[1]) if before is None else before.weight[group].flatten(1).mT,
        *(identity(taps) for taps in weight.shape[2:]),
    ]
    with pytorch_backend():
        return TuckerTensor((weight, factors))


def from_tucker_tensor(tensors: Sequence[TuckerTensor | TuckerPair], kernel_size: tuple[int, ...]) -> Factorization:
    """A chain 1x1, kxk, 1x1 from TensorLy's Tucker tensors, one for each group of the layer.

    >>> core, factors = torch.ones(2, 2, 9), [torch.ones(6, 2), torch.ones(4, 2)]
    >>> from_tucker_tensor([(core, factors)], (3, 3)).shapes[1]
    StageShape(out_channels=2, in_channels=2, kernel_size=(3, 3), groups=1)

    :param tensors: pairs (core, factors) over the modes T, S and taps; the taps may be one mode or several, and their
        factors may be missing, as ``partial_tucker`` leaves them.
    :param kernel_size: taps on each spatial axis.
    :return: the chain.
    """
    ones = (1,) * len(kernel_size)
    chains = []
    for core, (left, right, *others) in tensors:
        dense = core
        for mode, factor in enumerate(others, start=2):
            dense = torch.tensordot(dense, factor, dims=([mode], [1])).movedim(-1, mode)
        chains.append((right.mT.unflatten(1, (-1, *ones)), dense.reshape(*dense.shape[:2], *kernel_size), left))
    first, middle, last = (torch.stack(part) for part in zip(*chains, strict=True))
    return Factorization((Stage(first), Stage(middle), Stage(last.reshape(*last.shape, *ones))))


def to_cp_tensor(factorization: Factorization, group: int = 0) -> CPTensor:
    """One group of a CP chain as a ``tensorly.cp_tensor.CPTensor`` over (T, S, taps) with unit weights.

    >>> from lowrank_hooks import Problem
    >>> from lowrank_plugin.solvers.cpd import Cpd
    >>> solution = Cpd().fit(Problem(torch.ones(1, 6, 4, 3, 3)), (1,))
    >>> [tuple(factor.shape) for factor in to_cp_tensor(solution.value).factors]
    [(6, 1), (4, 1), (9, 1)]

    :param factorization: a chain 1x1, depthwise, 1x1.
    :param group: which group of the layer.
    :return: the factors, in the chain's dtype and on its device.
    :raises ValueError: for any other chain.
    """
    from tensorly.cp_tensor import CPTensor

    out, inp, tap = (factor[group].to(factorization.stages[0].weight) for factor in chain_factors(factorization))
    with pytorch_backend():
        return CPTensor((torch.ones(out.shape[1]).to(out), [out, inp, tap]))


def from_cp_tensor(tensors: Sequence[CPTensor | CPPair], kernel_size: tuple[int, ...]) -> Factorization:
    """A chain 1x1, depthwise, 1x1 from TensorLy's CP tensors, one for each group of the layer.

    >>> factors = [torch.ones(6, 2), torch.ones(4, 2), torch.ones(9, 2)]
    >>> from_cp_tensor([(torch.ones(2), factors)], (3, 3)).shapes[1]
    StageShape(out_channels=2, in_channels=2, kernel_size=(3, 3), groups=2)

    :param tensors: pairs (weights or None, factors of T, S and all taps).
    :param kernel_size: taps on each spatial axis.
    :return: the chain; the weights are in its last stage.
    """
    ones = (1,) * len(kernel_size)
    chains = []
    for weights, (left, right, taps) in tensors:
        chains.append((right.mT, taps.mT, left if weights is None else left * weights))
    first, middle, last = (torch.stack(part) for part in zip(*chains, strict=True))
    width = first.shape[1]
    return Factorization(
        (
            Stage(first.reshape(*first.shape, *ones)),
            Stage(middle.reshape(middle.shape[0], width, 1, *kernel_size), width),
            Stage(last.reshape(*last.shape, *ones)),
        )
    )


def _split(factorization: Factorization) -> tuple[Stage | None, Stage, Stage | None]:
    """The stage before, the core and the stage after it."""
    stages = factorization.stages
    widest = max(range(len(stages)), key=lambda i: stages[i].weight[0, 0, 0].numel())
    others = [stage for i, stage in enumerate(stages) if i != widest]
    pointwise = all(stage.weight[0, 0, 0].numel() == 1 for stage in others)
    if any(stage.groups != 1 for stage in stages) or widest > 1 or len(stages) - widest > 2 or not pointwise:
        msg = f"A Tucker tensor needs one convolution between 1x1 convolutions, not {factorization.shapes}."
        raise ValueError(msg)
    return (
        stages[widest - 1] if widest else None,
        stages[widest],
        stages[widest + 1] if widest + 1 < len(stages) else None,
    )
