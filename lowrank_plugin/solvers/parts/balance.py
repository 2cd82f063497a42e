# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The final scaling of a chain: no stage carries the weight of another."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_hooks import Factorization, Stage
from lowrank_plugin.solvers.parts.linear_algebra import power_of_two


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
    squares = [_squares(stage.weight) for stage in chain.stages]
    axes = [_read_axis(stage) for stage in chain.stages[1:]]
    scales = [torch.ones_like(each[:, :, 0]) for each in squares[:-1]]
    for _ in range(passes if len(squares) > 2 else 1):
        for index, axis in enumerate(axes):
            if axis is not None:
                made, read = squares[index].mean(dim=2), squares[index + 1].mean(dim=3 - axis)
                usable = (made > 0) & (read > 0)
                scale = torch.where(usable, read / made, torch.ones_like(made)).sqrt()
                squares[index] *= scale[:, :, None]
                squares[index + 1] /= scale.unsqueeze(3 - axis)
                scales[index] *= scale.sqrt()
    weights = [stage.weight.clone() for stage in chain.stages]
    for index, (scale, axis) in enumerate(zip(scales, axes, strict=True)):
        if axis is not None:
            weights[index] *= _along(scale, weights[index], 1)
            weights[index + 1] /= _along(scale, weights[index + 1], axis)
    return Factorization(tuple(Stage(weight, each.groups) for weight, each in zip(weights, chain.stages, strict=True)))


def _read_axis(stage: Stage) -> int | None:
    """The axis of a stage's weight that its input channels are on; None where they are on several."""
    if stage.groups == 1:
        return 2
    depthwise = stage.groups == stage.shape.in_channels == stage.shape.out_channels
    return 1 if depthwise else None


def _squares(weight: Tensor) -> Tensor:
    """The mean square over the taps, float64 [G, out, in]."""
    # The square of an entry of 1e-25 vanishes in float32, so the size is taken out first.
    size = power_of_two(weight)
    unit = (weight / size).square_().reshape(*weight.shape[:3], -1)
    return unit.mean(dim=3, dtype=torch.float64).mul_(size.double().square())


def _along(scale: Tensor, weight: Tensor, axis: int) -> Tensor:
    """[G, channels] shaped to multiply ``weight`` along ``axis``, in its dtype."""
    shape = [scale.shape[0]] + [1] * (weight.dim() - 1)
    shape[axis] = scale.shape[1]
    return scale.reshape(shape).to(weight)
