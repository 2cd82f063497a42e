# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Measured costs of many chains, drawn towards what explains all of them together.

An allocation picks the cheapest of many noisy costs, and so those that were measured too low. Therefore each is
replaced by the geometric mean of itself and of a model in the manner of a roofline: what the arithmetic, the weights,
the activations and the start of each stage cost, at rates that are common to all layers. Both are off by ten or twenty
per cent, but not in the same direction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lowrank_hooks import StageShape
from lowrank_plugin.costs.counted import sizes
from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.layers.survey import Layer
from lowrank_plugin.ranks.proposals import Choices, Proposal


def smoothed(choices: Mapping[str, Choices], layers: Mapping[str, Layer], model: nn.Module) -> dict[str, Choices]:
    """The choices of all layers at costs that depend less on the noise of single measurements.

    :param choices: for each layer, with measured costs above 0.
    :param layers: the layers by name.
    :param model: the network.
    :return: choices by hand whatever they cost; of the others those that cost less than the dense one by both, the
        measurement and the new cost.
    :raises ConfigurationError: where a cost is not above 0.
    """
    measured = {
        name: [*of_layer.free, *([of_layer.by_hand] if of_layer.by_hand else [])] for name, of_layer in choices.items()
    }
    found = {}
    for name, (dense, *others) in smooth(measured, layers, model).items():
        if choices[name].by_hand is not None:
            found[name] = Choices(dense, by_hand=others[0])
        else:
            found[name] = Choices(dense, tuple(each for each in others if each.cost < dense.cost))
    return found


def smooth(
    proposals: Mapping[str, Sequence[Proposal]], layers: Mapping[str, Layer], model: nn.Module
) -> dict[str, list[Proposal]]:
    """Proposals at the geometric mean of what was measured and what a model of all of them together says.

    :param proposals: for each layer, with measured costs above 0.
    :param layers: the layers by name.
    :param model: the network.
    :raises ConfigurationError: where a cost is not above 0.
    """
    features, costs = {}, {}
    for name, of_layer in proposals.items():
        module = model.get_submodule(name)
        features[name] = torch.stack([work(*sizes(layers[name], module, each.chain)) for each in of_layer])
        costs[name] = torch.tensor([each.cost for each in of_layer], dtype=torch.float64)
        bad = next((each.cost for each in of_layer if not 0 < each.cost < math.inf), None)
        if bad is not None:
            msg = f"A measured cost must be a number above 0, but one of layer {name!r} is {bad}: mend its cost model."
            raise ConfigurationError(msg)
    rates = fit(list(features.values()), list(costs.values()))
    means = {name: (costs[name] * (features[name] @ rates)).sqrt().tolist() for name in proposals}
    return {
        name: [replace(each, cost=cost) for each, cost in zip(of_layer, means[name], strict=True)]
        for name, of_layer in proposals.items()
    }


def work(stages: Sequence[StageShape], positions: Sequence[int], groups: int) -> Tensor:
    """What a chain has to do: pointwise, depthwise and other multiply-accumulates, weights, outputs and stages.

    >>> work([StageShape(8, 4, (1, 1)), StageShape(8, 8, (3, 3), 8)], [100, 100], 1).tolist()
    [3200.0, 7200.0, 0.0, 104.0, 1600.0, 2.0]

    :param stages: the sizes of the chain, for one group.
    :param positions: output positions each stage computes.
    :param groups: groups of the layer.
    :return: float64 [6].
    """
    found = torch.zeros(6, dtype=torch.float64)
    for stage, count in zip(stages, positions, strict=True):
        kind = 1 if stage.groups > 1 else 2 if math.prod(stage.kernel_size) > 1 else 0
        found[kind] += groups * stage.parameters * count
        found[3] += groups * stage.parameters
        found[4] += groups * stage.out_channels * count
        found[5] += 1
    return found


def fit(features: Sequence[Tensor], costs: Sequence[Tensor]) -> Tensor:
    """Rates, none below 0, of least squared relative errors; each layer counts as much as any other.

    >>> rates = fit([torch.tensor([[1.0, 0.0], [1.0, 2.0]])], [torch.tensor([3.0, 4.0])])
    >>> rates.round(decimals=6).tolist()
    [3.0, 0.5]

    :param features: for each layer [choices, features].
    :param costs: for each layer [choices], above 0.
    :return: [features].
    """
    from scipy.optimize import nnls  # here, for its import takes longer than that of all the rest

    weights = [1 / math.sqrt(len(cost)) for cost in costs]
    rows = torch.cat([weight * x / cost[:, None] for weight, x, cost in zip(weights, features, costs, strict=True)])
    aim = torch.cat([torch.full_like(cost, weight) for weight, cost in zip(weights, costs, strict=True)])
    rates, _ = nnls(rows.double().numpy(), aim.double().numpy())
    return torch.from_numpy(rates)
