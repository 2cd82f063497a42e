# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Weights rounded to the grid of their quantizers, each so that it makes up for the rounding of the others."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank_plugin.data.batches import take_batches
from lowrank_plugin.layers.kinds import Writable, writable
from lowrank_plugin.layers.survey import called_layers
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
from lowrank_plugin.settings import Calibration
from lowrank_plugin.statistics.collection import Observed, collect, product_bytes
from lowrank_plugin.statistics.moments import outer
from lowrank_plugin.statistics.norms import shrinkage
from lowrank_plugin.statistics.passes import GIGABYTE, collect_in_passes, divide
from lowrank_plugin.statistics.vectors import Inputs
from lowrank_plugin.support.progress import Progress, Steps, no_progress

logger = logging.getLogger(__name__)

SAMPLES = 128
"""Samples that the layers' inputs are seen on."""

_DAMPING = 0.01
"""Multiple of the mean eigenvalue added to second moments, as in [1]."""

_COPIES = 5
"""How many matrices as large as its second moments a layer is rounded with."""

_BLOCK = 128
"""Columns between two products with all errors so far."""


@dataclass(frozen=True)
class Grid:
    """The values that a weight may take: multiples of a step for each output channel.

    :param step: positive [T, 1], or with groups [G, T, 1].
    :param lowest: the smallest value, a multiple of the step, of the same shape.
    :param highest: the largest value, likewise.
    """

    step: Tensor
    lowest: Tensor
    highest: Tensor

    def nearest(self, weight: Tensor) -> Tensor:
        """The nearest value to each weight.

        :param weight: [..., T, N].
        """
        return ((weight / self.step).round() * self.step).clamp(self.lowest, self.highest)

    def grouped(self, groups: int) -> Grid:
        """The same, of a layer whose output channels are in groups."""
        return Grid(*(each.unflatten(0, (groups, -1)) for each in (self.step, self.lowest, self.highest)))


def rounded(weight: Tensor, moment: Tensor, grid: Grid) -> Tensor:
    r"""Choose values such that :math:`tr (W-Q) C (W-Q)'` is small: what rounding changes in the layer's output.

    Column by column, from the largest input to the smallest, each weight is rounded to the nearest value to what makes
    up best for the errors of the columns before it [1]. With :math:`C = R R'`, R upper triangular, that is the nearest
    value to :math:`w_j + \sum_{i<j} (w_i - q_i) R_{ij} / R_{jj}`, Babai's nearest plane [2]. Zeros stay zeros.

    [1] Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023,
    arXiv:2210.17323, section 3.
    [2] Babai, "On Lovasz' lattice reduction and the nearest lattice point problem", Combinatorica 6(1), 1986.

    >>> grid = Grid(torch.tensor([[1.0]]), torch.tensor([[-8.0]]), torch.tensor([[8.0]]))
    >>> rounded(torch.tensor([[0.4, 0.4]]), torch.tensor([[1.0, 0.9], [0.9, 1.0]]), grid)
    tensor([[0., 1.]])

    :param weight: [..., T, N].
    :param moment: second moments of the inputs [..., N, N], positive definite.
    :param grid: of the T output channels.
    :return: values of the grid [..., T, N].
    :raises torch.linalg.LinAlgError: where a moment is not positive definite.
    """
    order = moment.diagonal(dim1=-2, dim2=-1).argsort(descending=True, stable=True).unsqueeze(-2)
    weight = weight.take_along_dim(order, -1)
    moment = moment.take_along_dim(order.mT, -2).take_along_dim(order, -1)
    factor = torch.linalg.cholesky(moment.flip(-2, -1)).flip(-2, -1)
    chosen, errors = torch.zeros_like(weight), torch.zeros_like(weight)
    width = weight.shape[-1]
    for start in range(0, width, _BLOCK):
        block = slice(start, min(start + _BLOCK, width))
        carried = errors[..., :start] @ factor[..., :start, block]
        for place in range(block.start, block.stop):
            here = slice(place, place + 1)
            missing = carried[..., place - start, None] + errors[..., start:place] @ factor[..., start:place, here]
            values = grid.nearest(weight[..., here] + missing / factor[..., here, here])
            chosen[..., here] = torch.where(weight[..., here] == 0, 0, values)
            errors[..., here] = weight[..., here] - chosen[..., here]
    return chosen.take_along_dim(order.argsort(-1), -1)


def round_weights(
    model: nn.Module,
    grids: Mapping[str, Grid],
    batches: object,
    *,
    samples: int = SAMPLES,
    memory_gb: float = Calibration.memory_gb,
    progress: Progress = no_progress,
) -> None:
    """Round the weights of layers in place, and correct their biases by what that changes in their mean outputs.

    A row of a weight for which rounding to the nearest would be better on the calibration data is rounded so.

    >>> model, half = nn.Sequential(nn.Linear(4, 2)), torch.full((2, 1), 0.5)
    >>> round_weights(model, {"0": Grid(half, -8 * half, 7 * half)}, [torch.randn(32, 4)])
    >>> bool((model[0].weight % 0.5 == 0).all())
    True

    :param model: the network, with its quantizers in place.
    :param grids: the grids by layer name. Layers that are not called, that no adapter can write to
        (:class:`lowrank_hooks.WeightLayout`), whose inputs are not finite, or that are too wide for the second moments
        of their inputs to be held, are left as they are.
    :param batches: calibration data, as for :func:`lowrank_plugin.decompose`.
    :param samples: the most samples used.
    :param memory_gb: gigabytes that the second moments of the inputs may need; what does not fit takes more passes.
    :param progress: shows a bar.
    :raises LowRankError: where the data cannot be used.
    """
    adapters, steps = manager().registered(LAYER_ADAPTERS), Steps(progress, manager().observe)
    modules = {name: model.get_submodule(name) for name in grids}
    layouts = {name: found for name, module in modules.items() if (found := writable(module, adapters)) is not None}
    taken = take_batches(model, batches, samples)
    layers = called_layers(model, taken[0], {name: modules[name] for name in layouts}, adapters)

    def look(names: list[str]) -> dict[str, Observed]:
        return collect(model, {name: layers[name] for name in names}, taken, steps=steps)

    observed = collect_in_passes(look, divide(model, layers, taken, Calibration.positions, memory_gb).groups)
    small = [name for name in observed if _COPIES * product_bytes(layers[name]) <= memory_gb * GIGABYTE]
    fit = [name for name in small if observed[name].patches.finite]
    logger.info("The weights of %d of %d layers are rounded.", len(fit), len(grids))
    for name in steps.each("round", "Rounding weights", fit, fit):
        _round(layouts[name], modules[name], grids[name], observed[name].inputs)


@torch.no_grad()
def _round(adapter: Writable, module: nn.Module, grid: Grid, inputs: Inputs) -> None:
    kernel, bias = adapter.kernel(module), module._parameters.get("bias")
    grid, rows = grid.grouped(len(kernel)), kernel.flatten(2).double()
    # a bias takes up what rounding changes in the mean
    moment = inputs.covariance if bias is not None else inputs.covariance + outer(inputs.mean, inputs.mean)
    before, after = grid.nearest(rows), rounded(rows, _damped(moment, inputs.count), grid)
    better = _errors(rows - after, moment) < _errors(rows - before, moment)
    chosen = torch.where(better, after, before)
    module.get_parameter("weight").copy_(adapter.to_weight(module, chosen.reshape(kernel.shape)))
    if bias is not None:
        bias.add_(((rows - chosen) @ inputs.mean[..., None]).flatten())


def _damped(moment: Tensor, count: int) -> Tensor:
    """Shrunk as far as it is uncertain, and kept away from singular: [G, N, N]."""
    share = shrinkage(moment, count, moment.shape[-1])
    size = moment.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    added = (share + _DAMPING) * torch.where(size > 0, size, 1)
    return moment * (1 - share)[:, None, None] + torch.diag_embed(added[:, None].expand(moment.shape[:2]))


def _errors(difference: Tensor, moment: Tensor) -> Tensor:
    """The mean squares of the outputs [..., T, 1] of weights [..., T, N]."""
    return ((difference @ moment) * difference).sum(dim=-1, keepdim=True)
