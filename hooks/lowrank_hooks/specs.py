# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The hooks. A plugin implements any of them and names its module under the entry-point group ``lowrank``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowrank_hooks.records import (
        CompressionAlgorithmRecord,
        CostModelRecord,
        DecomposerRecord,
        LayerAdapterRecord,
        RankPolicyRecord,
        StepEvent,
    )

PROJECT = "lowrank"
_hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Decorates a plugin's implementation of a hook."""


@_hookspec
def lowrank_decomposers() -> Iterable[DecomposerRecord]:
    """Offer ways to factorise a kernel.

    Called whenever decomposers are looked up, so it should be quick and yield the same each time. Two records of one
    name are an error that names both distributions.

    >>> import torch
    >>> from lowrank_hooks import DecomposerRecord, Factorization, Point, Solution, Stage, StageShape, Status, hookimpl
    >>> class FirstInputs:
    ...     "Drops all inputs but the first ones; a linear layer only."
    ...     def structure(self, shape, rank):
    ...         if len(rank) != 1 or rank[0] < 1:
    ...             raise ValueError(f"Expected one rank from 1, got {rank}.")
    ...         r = min(rank[0], shape.in_channels)
    ...         return StageShape(r, shape.in_channels), StageShape(shape.out_channels, r)
    ...     def curve(self, problem):
    ...         count = problem.shape.in_channels
    ...         return [Point((r,), self.fit(problem, (r,)).statistics["relative_error"]) for r in range(1, count + 1)]
    ...     def fit(self, problem, rank):
    ...         r = self.structure(problem.shape, rank)[0].out_channels
    ...         select = torch.eye(problem.shape.in_channels).to(problem.kernel)[None, :r].clone()
    ...         chain = Factorization((Stage(select), Stage(problem.kernel[:, :, :r].clone())))
    ...         return Solution(chain, Status.CONVERGED, {"relative_error": problem.relative_error(chain)})
    >>> class Plugin:
    ...     @hookimpl
    ...     def lowrank_decomposers(self):
    ...         yield DecomposerRecord("first_inputs", FirstInputs(), "keeps some inputs", frozenset({0}))
    >>> [record.name for record in Plugin().lowrank_decomposers()]
    ['first_inputs']

    ..  versionadded:: 0.1

    :return: the records.
    """
    raise NotImplementedError


@_hookspec
def lowrank_layer_adapters() -> Iterable[LayerAdapterRecord]:
    """Make further module types compressible.

    Called whenever a model is surveyed or restored. Two records of one name are an error.

    >>> import torch
    >>> from torch import nn
    >>> from lowrank_hooks import Factorization, LayerAdapterRecord, Stage, hookimpl
    >>> class Affine(nn.Module):
    ...     "A layer of one's own."
    ...     def __init__(self, weight, bias=None):
    ...         super().__init__()
    ...         self.weight, self.bias = nn.Parameter(weight), None if bias is None else nn.Parameter(bias)
    ...     def forward(self, x):
    ...         return nn.functional.linear(x, self.weight, self.bias)
    >>> class AffineAdapter:
    ...     "Sees the weight as a kernel [1, T, S]; chains are of nn.Linear."
    ...     def refusal(self, module):
    ...         return None
    ...     def kernel(self, module):
    ...         return module.weight.detach().unsqueeze(0)
    ...     def patches(self, module, inputs):
    ...         return torch.atleast_2d(inputs).unsqueeze(-2)
    ...     def outputs(self, module, outputs):
    ...         return torch.atleast_2d(outputs).unsqueeze(-2)
    ...     def positions(self, module, stages, inputs, outputs):
    ...         return (outputs[..., 0].numel(),) * len(stages)
    ...     def build(self, module, factorization, bias):
    ...         chain = [nn.Linear(*each.weight.shape[:0:-1], bias=False) for each in factorization.stages]
    ...         for linear, stage in zip(chain, factorization.stages):
    ...             linear.weight = nn.Parameter(stage.weight[0].clone())
    ...         chain[-1].bias = None if bias is None else nn.Parameter(bias.clone())
    ...         return nn.Sequential(*chain)
    ...     def to_dense(self, module):
    ...         stages = tuple(Stage(linear.weight.detach().unsqueeze(0)) for linear in module)
    ...         return Affine(Factorization(stages).to_kernel()[0], module[-1].bias)
    >>> class Plugin:
    ...     @hookimpl
    ...     def lowrank_layer_adapters(self):
    ...         yield LayerAdapterRecord("Affine", Affine, AffineAdapter(), "a linear layer of one's own")
    >>> [record.adapter.kernel(Affine(torch.ones(2, 3))).shape for record in Plugin().lowrank_layer_adapters()]
    [torch.Size([1, 2, 3])]

    ..  versionadded:: 0.1

    :return: the records.
    """
    raise NotImplementedError


@_hookspec
def lowrank_cost_models() -> Iterable[CostModelRecord]:
    """Offer units in which a budget may be given.

    Called whenever a plan is made. A unit is counted from sizes, as here, or measured on the network.

    >>> from lowrank_hooks import CostModelRecord, StageShape, hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def lowrank_cost_models(self):
    ...         yield CostModelRecord("bytes", lambda stages, positions, groups: 4.0 * groups * sum(
    ...             stage.parameters for stage in stages))
    >>> [record.cost([StageShape(8, 4)], [100], 1) for record in Plugin().lowrank_cost_models()]
    [128.0]

    ..  versionadded:: 0.1

    :return: the records.
    """
    raise NotImplementedError


@_hookspec
def lowrank_rank_policies() -> Iterable[RankPolicyRecord]:
    """Offer ways to share a budget among the layers.

    Called whenever a plan is made.

    >>> from lowrank_hooks import Option, RankPolicyRecord, hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def lowrank_rank_policies(self):
    ...         yield RankPolicyRecord("cheapest", lambda options, budget: {
    ...             name: min(range(len(of_layer)), key=lambda i: of_layer[i].cost)
    ...             for name, of_layer in options.items()})
    >>> options = {"conv": [Option(10.0, 0.0), Option(4.0, 0.1)]}
    >>> [record.allocate(options, 5.0) for record in Plugin().lowrank_rank_policies()]
    [{'conv': 1}]

    ..  versionadded:: 0.1

    :return: the records.
    """
    raise NotImplementedError


@_hookspec
def lowrank_compression_algorithms() -> Iterable[CompressionAlgorithmRecord]:
    """Offer algorithms that a host's config may list beside the built-in ones.

    Called by the host whenever a config is used. A record for a name that is taken is an error that names both
    distributions.

    >>> import copy, torch
    >>> from lowrank_hooks import CompressionAlgorithmRecord, CompressionContext, hookimpl
    >>> def apply(model, section, context):
    ...     model = copy.deepcopy(model)
    ...     with torch.no_grad():
    ...         for parameter in model.parameters():
    ...             parameter.copy_(parameter.half())
    ...     return model, {"rounded": sum(1 for _ in model.parameters())}
    >>> class Plugin:
    ...     @hookimpl
    ...     def lowrank_compression_algorithms(self):
    ...         yield CompressionAlgorithmRecord("round", apply, after=frozenset({"lowrank"}))
    >>> [record.apply(torch.nn.Linear(2, 2), {}, CompressionContext())[1]
    ...  for record in Plugin().lowrank_compression_algorithms()]
    [{'rounded': 2}]

    ..  versionadded:: 0.1

    :return: the records.
    """
    raise NotImplementedError


@_hookspec
def lowrank_step(event: StepEvent) -> None:
    """Observe the flow, for a progress bar or a log.

    Called after each unit of work, from the thread that does it. What it returns is ignored.

    >>> from lowrank_hooks import StepEvent, hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def lowrank_step(self, event):
    ...         print(f"{event.step}: {event.done} of {event.total}")
    >>> Plugin().lowrank_step(StepEvent("fit", 1, 3, "conv"))
    fit: 1 of 3

    ..  versionadded:: 0.1

    :param event: what has just been done.
    """
    raise NotImplementedError
