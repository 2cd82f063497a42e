# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The final scaling of a chain: no stage carries the weight of another."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_hooks import Factorization, Stage


def balance(chain: Factorization, passes: int = 8) -> Factorization:
    r"""Scale the channels between the stages so that what makes a channel and what reads it have equal entries.

    The kernel does not change. For a channel made by m weights of norm a and read by n weights of norm b, noise of
    equal variance on all of them changes the kernel by a multiple of :math:`m b^2 + n a^2` summed over the channels,
    which is least where the root mean squares :math:`a/\sqrt m` and :math:`b/\sqrt n` agree (the two-factor case of
    the sensitivity in [1], section 3). That suits rounding to int8 and gradient descent alike. In chains of three and
    more stages the pairs are balanced in turn.

    [1] Phan et al., "Stable Low-Rank Tensor Decomposition for Compression of Convolutional Neural Network",
    ECCV 2020, arXiv:2008.05441.

    >>> chain = Factorization((Stage(torch.full((1, 1, 2), 8.0)), Stage(torch.full((1, 2, 1), 0.5))))
    >>> [float(stage.weight.max()) for stage in balance(chain).stages]
    [2.0, 2.0]

    :param chain: any chain of ungrouped or depthwise stages; others are left as they are.
    :param passes: rounds over the pairs of a chain with more than two stages.
    :return: the chain, same shapes, dtypes and devices.
    """
    stages = list(chain.stages)
    for _ in range(passes if len(stages) > 2 else 1):
        for index in range(len(stages) - 1):
            stages[index], stages[index + 1] = _balance_pair(stages[index], stages[index + 1])
    return Factorization(tuple(stages))


def _balance_pair(first: Stage, second: Stage) -> tuple[Stage, Stage]:
    depthwise = second.groups == second.shape.in_channels and second.groups == second.shape.out_channels
    if second.groups != 1 and not depthwise:
        return first, second
    axis = 1 if depthwise else 2
    made, read = _root_mean_square(first.weight, 1), _root_mean_square(second.weight, axis)
    usable = (made > 0) & (read > 0)
    scale = torch.where(usable, (read / made).sqrt(), torch.ones_like(made))
    return (
        Stage(first.weight * _along(scale, first.weight, 1), first.groups),
        Stage(second.weight / _along(scale, second.weight, axis), second.groups),
    )


def _root_mean_square(weight: Tensor, axis: int) -> Tensor:
    """The root mean square of [G, ...] over all axes but the first and ``axis``: [G, channels]."""
    rows = weight.movedim(axis, 1).flatten(2)
    # Entries of a kernel of 1e-8 vanish when squared in float32, so the largest is taken out first.
    largest = rows.abs().amax(dim=2)
    unit = rows / torch.where(largest > 0, largest, torch.ones_like(largest))[:, :, None]
    return largest * unit.square().mean(dim=2).sqrt()


def _along(scale: Tensor, weight: Tensor, axis: int) -> Tensor:
    """[G, channels] shaped to multiply ``weight`` along ``axis``."""
    shape = [scale.shape[0]] + [1] * (weight.dim() - 1)
    shape[axis] = scale.shape[1]
    return scale.reshape(shape)
