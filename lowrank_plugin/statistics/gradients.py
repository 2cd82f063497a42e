# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""How much the model's output depends on each layer's: second moments of output gradients, without labels."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lowrank_plugin.data.batches import batch_size, call, enough, evaluating
from lowrank_plugin.errors import ConfigurationError, LowRankError
from lowrank_plugin.layers.survey import Layer
from lowrank_plugin.outputs.reading import Outputs, told
from lowrank_plugin.support import processes
from lowrank_plugin.support.hooking import hooked
from lowrank_plugin.support.keeping import frozen
from lowrank_plugin.support.progress import SILENT, Steps

logger = logging.getLogger(__name__)

SAMPLES = 128
"""Samples that gradients are taken from."""

Watch = Callable[[nn.Module, tuple[object, ...], dict[str, object], Tensor], Callable[[Tensor], None]]
"""Called when a layer has run, with the module, the arguments of its forward and its output; what it returns is called
with the gradient of the probe of the log-likelihood with respect to that output."""


def collect_gradients(
    model: nn.Module,
    layers: Mapping[str, Layer],
    batches: Sequence[object],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    steps: Steps = SILENT,
    outputs: Outputs | None = None,
) -> dict[str, Tensor]:
    r"""The Fisher information of each layer's output: E[g g'], g the log-likelihood's gradient.

    A small error of covariance E in the layer's output costs about ``tr(Gamma E) / 2``, in the unit of the outputs, if
    errors at different positions are independent; see :func:`pull_back`.

    >>> from lowrank_plugin.layers.survey import survey
    >>> from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
    >>> from lowrank_plugin.settings import Settings
    >>> model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(32, 4)
    >>> layers = survey(model, x, Settings(), manager().registered(LAYER_ADAPTERS)).layers
    >>> fisher = collect_gradients(model, layers, [x])["0"]
    >>> fisher.shape, bool((fisher.sum(dim=2).abs() < 1e-6).all())  # logits may all move together
    (torch.Size([1, 3, 3]), True)

    :param model: the network; parameters, their gradients, its mode and hooks stay as they are.
    :param layers: the layers by name.
    :param batches: model inputs.
    :param samples: how many samples are used.
    :param seed: seed of the random draws.
    :param steps: hears of each batch, as the step ``"weigh"``.
    :param outputs: what the model's outputs are; None to judge by what they look like.
    :return: [G, T, T] in float64 by layer name, summed over the positions of a sample and averaged over the samples;
        empty where the model's output cannot be differentiated.
    """
    sums: dict[str, Tensor] = {}

    def watching(layer: Layer) -> Watch:
        def watch(module: nn.Module, args: object, kwargs: object, output: Tensor) -> Callable[[Tensor], None]:
            def receive(gradient: Tensor) -> None:
                vectors = layer.adapter.outputs(module, gradient)
                vectors = vectors.reshape(-1, *vectors.shape[-2:]).movedim(1, 0).float()
                gram = (vectors.mT @ vectors).double()
                sums[layer.name] = sums[layer.name] + gram if layer.name in sums else gram

            return receive

        return watch

    watches = {name: watching(layer) for name, layer in layers.items()}
    return pull_back(
        model,
        watches,
        batches,
        sums,
        samples=samples,
        seed=seed,
        description="Collecting gradients",
        steps=steps,
        outputs=outputs,
    )


def pull_back(
    model: nn.Module,
    watches: Mapping[str, Watch],
    batches: Sequence[object],
    sums: Mapping[str, Tensor],
    *,
    samples: int,
    seed: int,
    description: str,
    steps: Steps,
    after: Callable[[object], None] = lambda batch: None,
    outputs: Outputs | None = None,
) -> dict[str, Tensor]:
    r"""Run the model forwards and its log-likelihood backwards, show layers their gradients, and average what they sum.

    What goes backwards from each output are probes of its loss (:mod:`lowrank_plugin.outputs.kinds`), so that the
    second moments of gradients are the curvature of the divergence between the model and a perturbed one. From logits
    that is less noisy than the gradient for a label drawn from their softmax, which has the same second moments.
    Values are taken as Gaussian with the variance that they have over the batch. A batch with no output that counts,
    as where a detector detects nothing, adds nothing.

    :param model: the network; parameters, their gradients, its mode and hooks stay as they are.
    :param watches: who looks, by the names of the layers.
    :param batches: model inputs; under ``torch.distributed`` this process takes its share of them.
    :param sums: by layer name, what is summed over the samples while the watches and ``after`` are called.
    :param samples: how many samples are used.
    :param seed: seed of the random draws.
    :param description: for the bar.
    :param steps: hears of each batch, as the step ``"weigh"``.
    :param after: called with each batch when its gradients have been shown.
    :param outputs: what the model's outputs are; None to judge by what they look like.
    :return: the sums of all processes over the number of samples; empty, after a warning, where the model's output
        cannot be differentiated, or nothing in it counts.
    :raises ConfigurationError: where what the user says of the outputs does not fit.
    """
    chosen = enough(batches, samples)
    generator = torch.Generator()
    read = Outputs() if outputs is None else outputs
    taps = {model.get_submodule(name): _tap(watch) for name, watch in watches.items()}

    def run() -> None:
        for place, batch in steps.each("weigh", description, processes.share(chosen)):
            # a draw of its own for each batch, whichever process it falls to
            generator.manual_seed(zlib.crc32(f"{seed}/{place}".encode()))
            _pull(read, call(model, batch), generator)
            after(batch)

    try:
        with evaluating(model), frozen(model), torch.enable_grad(), hooked(taps):
            processes.together(run)
    except ConfigurationError:
        raise
    except (RuntimeError, LowRankError) as error:
        logger.warning("All layers count alike, because the model cannot be differentiated: %s", error)
        return {}
    total = sum(batch_size(batch) for batch in chosen)
    summed = processes.summed(sums, next(model.parameters()).device)
    if watches and not summed:
        logger.warning("All layers count alike, because no output says what an error costs: %s.", told(read.left_out))
    return {name: each / total for name, each in summed.items()}


def _tap(watch: Watch) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        with torch.no_grad():
            receive = watch(module, args, kwargs, output)
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        # a copy, because what follows may change it in place and a leaf must not be
        output = output.clone()
        output.register_hook(receive)
        return output

    return hook


def _pull(outputs: Outputs, output: object, generator: torch.Generator) -> None:
    """Send a probe of the loss of each output backwards."""
    tensors, probes = [], []
    for leaf in outputs.read(output):
        if leaf.tensor.requires_grad:
            outputs.count(leaf)
            tensors.append(leaf.tensor)
            probes.append(leaf.loss.probe(leaf.tensor.detach(), generator))
        else:
            outputs.left_out[leaf.name] = "it does not depend on the layers through autograd"
    if tensors:
        torch.autograd.backward(tensors, probes)
