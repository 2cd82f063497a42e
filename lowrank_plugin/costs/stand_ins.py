# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Chains and networks with random weights, to be timed before anything is solved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from lowrank_hooks import CostContext, Factorization, Stage, StageShape
from lowrank_plugin.data.batches import call, evaluating
from lowrank_plugin.layers.replacement import make_chain, replace
from lowrank_plugin.layers.survey import Layer, layer_input
from lowrank_plugin.support.copying import copied
from lowrank_plugin.support.hooking import hooked


def cost_context(
    model: nn.Module, example: object, layers: Mapping[str, Layer], runtime: Mapping[str, str]
) -> CostContext:
    """What a cost model needs to measure a network.

    :param model: the network.
    :param example: the input it is timed with.
    :param layers: its layers that can be compressed.
    :param runtime: the section's ``"runtime"``.
    """
    inputs: dict[str, list[Sequence[int]]] = {name: [] for name in layers}

    def record(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs[name].append(tuple(layer_input(args, kwargs).shape))

    hooks = {model.get_submodule(name): partial(record, name) for name in layers}
    with evaluating(model), hooked(hooks, before=True):
        call(model, example)
    return CostContext(model, example, runtime, inputs, lambda name, chain: random_chain(model, layers[name], chain))


def random_chain(model: nn.Module, layer: Layer, chain: Sequence[StageShape]) -> nn.Module:
    """A chain with random weights, in eval mode and without hooks.

    :param model: the network.
    :param layer: the layer it is for.
    :param chain: the sizes of its stages for one group; empty for a chain of one stage, like the layer itself.
    """
    module = model.get_submodule(layer.name)
    shape = layer.shape
    stages = chain or (StageShape(shape.out_channels, shape.in_channels, shape.kernel_size),)
    weight = module.get_parameter("weight")
    factors = _random(stages, shape.groups, weight)
    return layer.adapter.build(module, factors, weight.new_zeros(shape.groups * shape.out_channels)).eval()


def random_network(
    model: nn.Module, layers: Mapping[str, Layer], chains: Mapping[str, Sequence[StageShape]]
) -> nn.Module:
    """A copy of a network with random chains in the place of some layers.

    :param model: the network.
    :param layers: the layers by name.
    :param chains: the sizes of the chains by layer name.
    """
    network = copied(model)
    for name, chain in chains.items():
        layer, old = layers[name], network.get_submodule(name)
        weight = old.get_parameter("weight")
        bias = weight.new_zeros(layer.shape.groups * layer.shape.out_channels)
        new = make_chain(old, layer.adapter, _random(chain, layer.shape.groups, weight), bias)
        if old is network:
            return new
        replace(network, old, new)
    return network


def _random(chain: Sequence[StageShape], groups: int, like: Tensor) -> Factorization:
    """Factors of the size that keeps activations as large as they are, far from denormal numbers, which are slow."""
    # of two equal layers in one network, a compiler might compute only one
    generator = torch.Generator().manual_seed(crc32(repr(chain).encode()))
    stages = []
    for shape in chain:
        inputs = shape.in_channels // shape.groups
        size = (groups, shape.out_channels, inputs, *shape.kernel_size)
        weight = torch.randn(size, generator=generator) / math.sqrt(inputs * math.prod(shape.kernel_size))
        stages.append(Stage(weight.to(like), shape.groups))
    return Factorization(tuple(stages))
