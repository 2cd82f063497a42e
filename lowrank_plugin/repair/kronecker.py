# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The curvature of a loss in the weights of convolutions and linear layers, as a Kronecker product for each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lowrank_hooks import LayerAdapter
from lowrank_plugin.layers.kinds import Writable
from lowrank_plugin.layers.survey import layer_input
from lowrank_plugin.outputs.losses import Loss
from lowrank_plugin.repair.gauss_newton import Function, Parameters, Sample
from lowrank_plugin.statistics.sampling import draw_positions
from lowrank_plugin.support.hooking import hooked

DAMPING = 0.01
"""Multiple of the mean curvature of a layer that is added to all of its curvatures."""

POSITIONS = 4096
"""Most positions of a batch that a layer's inputs are looked at."""


@dataclass
class _Seen:
    """Second moments of a layer's inputs [G, D, D] and of the probes at its outputs [G, T, T], means over positions."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    positions: int = 0


class Kronecker:
    r"""The Gauss-Newton matrix of each layer approximated by :math:`n\,A \otimes G` for each group, and its inverse.

    A holds the second moments of the layer's input patches, extended by a one where the layer has a bias; G those of
    what slopes for random targets pull back to its output; n counts positions. In the eigenvectors of
    both the matrix is diagonal.

    J. Martens and R. Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", ICML 2015,
    section 3; R. Grosse and J. Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers",
    ICML 2016, section 3.

    :param function: from no weights and the inputs of a sample to an output, through the layers themselves.
    :param layers: layers by name, each with the adapter that shows its patches and the layout of its weight.
    :param samples: some, for the moments.
    :param fraction: which part they are of the samples that the matrix is a sum over.
    :param loss: the loss.
    :param seed: of the probes.
    """

    def __init__(
        self,
        function: Function,
        layers: Mapping[str, tuple[nn.Module, Writable]],
        samples: Sequence[Sample],
        fraction: float,
        loss: Loss,
        seed: int,
    ) -> None:
        self._layers = layers
        self._factors: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.damping: dict[str, float] = {}
        """What is added to the matrix, for each weight tensor."""
        for name, seen in _observe(function, layers, samples, loss, seed).items():
            low, basis = torch.linalg.eigh(torch.stack(seen.inputs).mean(dim=0))
            high, probes = torch.linalg.eigh(torch.stack(seen.outputs).mean(dim=0))
            curvature = seen.positions / fraction * high.clamp_min(0).unsqueeze(-1) * low.clamp_min(0).unsqueeze(-2)
            added = DAMPING * float(curvature.mean()) or 1.0
            self._factors[name] = (basis, probes, curvature + added)
            self.damping.update(dict.fromkeys(_names(name, layers[name][0]), added))

    def solve(self, gradient: Parameters) -> Parameters:
        """Multiply by the inverse.

        :param gradient: a tensor for each weight and bias.
        :return: likewise.
        """
        found = {}
        for name, (basis, probes, curvature) in self._factors.items():
            layer, adapter = self._layers[name]
            weight, *bias = _names(name, layer)
            kernel = adapter.to_kernel(layer, gradient[weight])
            groups, out = kernel.shape[:2]
            rows = kernel.reshape(groups, out, -1)
            if bias:
                rows = torch.cat([rows, gradient[bias[0]].reshape(groups, out, 1)], dim=2)
            rows = probes @ (probes.mT @ rows @ basis / curvature) @ basis.mT
            if bias:
                found[bias[0]] = rows[..., -1].reshape_as(gradient[bias[0]])
                rows = rows[..., :-1]
            found[weight] = adapter.to_weight(layer, rows.reshape(kernel.shape))
        return found


def _names(name: str, layer: nn.Module) -> list[str]:
    return [f"{name}.{each}" for each, parameter in layer.named_parameters(recurse=False) if parameter is not None]


def _observe(
    function: Function,
    layers: Mapping[str, tuple[nn.Module, Writable]],
    samples: Sequence[Sample],
    loss: Loss,
    seed: int,
) -> dict[str, _Seen]:
    generator = torch.Generator().manual_seed(seed)
    seen = {name: _Seen() for name in layers}
    taps = {layer: _tap(adapter, seen[name], generator) for name, (layer, adapter) in layers.items()}
    with torch.enable_grad(), hooked(taps):
        for sample in samples:
            output = function({}, sample.inputs)
            output.backward(loss.drawn(output.detach(), generator))
    return seen


def _tap(adapter: LayerAdapter, seen: _Seen, generator: torch.Generator) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        with torch.no_grad():
            view = adapter.patches(module, layer_input(args, kwargs).detach())
            axes = view.dim() - adapter.kernel(module).dim() + 1
            vectors = draw_positions(view, axes, POSITIONS, generator).flatten(2)
            if getattr(module, "bias", None) is not None:
                vectors = torch.cat([vectors, torch.ones_like(vectors[..., :1])], dim=2)
            seen.inputs.append(_second_moments(vectors))
        # a copy, because what follows may change it in place
        output = (output if output.requires_grad else output.detach().requires_grad_()).clone()
        output.register_hook(lambda gradient: receive(module, gradient))
        return output

    def receive(module: nn.Module, gradient: Tensor) -> None:
        vectors = adapter.outputs(module, gradient)
        vectors = vectors.reshape(-1, *vectors.shape[-2:])
        seen.positions += len(vectors)
        seen.outputs.append(_second_moments(vectors))

    return hook


def _second_moments(vectors: Tensor) -> Tensor:
    """Of [N, G, D]: [G, D, D]."""
    by_group = vectors.movedim(1, 0)
    return by_group.mT @ by_group / len(vectors)
