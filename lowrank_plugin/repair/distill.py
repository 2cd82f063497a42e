# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Distillation without labels: block by block, front to back, the chains are refitted to the original's outputs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lowrank_plugin.data.batches import call, enough, evaluating, split
from lowrank_plugin.data.samples import mapped
from lowrank_plugin.layers.kinds import Adapters, Writable, writable
from lowrank_plugin.outputs.kinds import AUTO
from lowrank_plugin.outputs.losses import Loss, Values
from lowrank_plugin.outputs.reading import Outputs, Whole, told
from lowrank_plugin.repair.checkpoint import Errors, Notebook
from lowrank_plugin.repair.gauss_newton import Minimum, Parameters, Sample, minimise
from lowrank_plugin.repair.kronecker import Kronecker
from lowrank_plugin.repair.swapping import swapped
from lowrank_plugin.support.hooking import hooked
from lowrank_plugin.support.keeping import frozen
from lowrank_plugin.support.progress import SILENT, Steps

logger = logging.getLogger(__name__)

HELD_OUT = 1 / 8
"""Share of the calibration samples that the chains are judged on and not fitted to."""

POSITIONS = 48
"""Output positions that a block is fitted to, as a multiple of the inputs of its widest stage."""

BATCH = 32
"""Samples that go through a block at a time."""

LEAST = 64
"""Samples that a block is fitted to at least, where there are as many: positions of one image are much alike."""

PROBED = 64
"""Samples that the curvature of a block is estimated from."""

Read = Callable[[object], "Tensor | None"]
"""From what a block returns to the tensor that is wanted of it; None where there is none."""


@dataclass(frozen=True)
class Block:
    """A part of the network that is refitted as a whole.

    :param name: the dotted name of a module; empty for the network itself.
    :param chains: the names of the chains in it that are refitted.
    """

    name: str
    chains: tuple[str, ...]


def find_blocks(model: nn.Module, chains: Sequence[str]) -> list[Block]:
    """The blocks that chains are in: the nearest module around each that is more than a sequence, or the chain alone.

    >>> find_blocks(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3))), ["0.0"])
    [Block(name='0.0', chains=('0.0',))]

    :param model: the network with chains.
    :param chains: their names, in the order of the forward pass.
    :return: blocks in the order in which the first of their chains runs.
    """
    found: dict[str, list[str]] = {}
    for chain in chains:
        parents = [chain.rsplit(".", count)[0] for count in range(1, chain.count(".") + 1)]
        around = (name for name in parents if type(model.get_submodule(name)) not in (nn.Sequential, nn.ModuleList))
        found.setdefault(next(around, chain), []).append(chain)
    return [Block(name, tuple(inside)) for name, inside in found.items()]


def distill(
    original: nn.Module,
    compressed: nn.Module,
    chains: Sequence[str],
    batches: Sequence[object],
    *,
    adapters: Adapters,
    iterations: int = 6,
    network_iterations: int = 0,
    seed: int = 0,
    notebook: Notebook | None = None,
    steps: Steps = SILENT,
    outputs: Outputs | None = None,
) -> Errors:
    """Refit the chains of every block to what the block puts out in the original network.

    A block gets the inputs that it will really have, those of the compressed network with all blocks before it
    refitted, so that it makes up for what went wrong before. Each block is a small nonlinear least-squares problem,
    solved by Gauss-Newton with conjugate gradients (:func:`lowrank_plugin.repair.gauss_newton.minimise`), which need
    neither learning rate nor labels. One sample in eight is held out: a block is changed only where that lowers its
    error.

    Afterwards all chains are fitted together to what the original puts out, in the same way: to logits by their
    divergence, to values by their squared distance (:mod:`lowrank_plugin.outputs.kinds`).

    >>> from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
    >>> batches, adapters = [torch.randn(64, 8)], manager().registered(LAYER_ADAPTERS)
    >>> original = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    >>> compressed = nn.Sequential(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8)), nn.Tanh())
    >>> before, after = distill(original, compressed, ["0"], batches, adapters=adapters)["0"]
    >>> after < before
    True

    :param original: the network before its compression.
    :param compressed: the network with chains, changed in place; at least float32.
    :param chains: names of the chains, in the order of the forward pass.
    :param batches: model inputs, at least two samples.
    :param adapters: the layer adapters by name. Chains with a stage of a kind that none of them can write to
        (:class:`lowrank_hooks.WeightLayout`) are left as they are.
    :param iterations: the most iterations of conjugate gradients for a block.
    :param network_iterations: the most for the whole network; where no output of its counts there are none.
    :param seed: of the random probes.
    :param notebook: where what is done is kept, and found again after an interruption; None keeps nothing.
    :param steps: hears of each block, as the step ``"distill"``.
    :param outputs: what the network's outputs are; None to judge by what they look like.
    :return: the loss of each block (of the network under the empty name) on the held-out samples as a share of what
        constant outputs would cost, before and after.
    :raises CalibrationError: where there are fewer than two samples.
    :raises PlanError: where the notebook cannot be read or written.
    """
    learned, held_out = split(batches, HELD_OUT, BATCH)
    read = Outputs.of(original, AUTO) if outputs is None else outputs
    blocks = find_blocks(compressed, chains)
    if network_iterations:
        blocks = [*(block for block in blocks if block.name), Block("", tuple(chains))]
    found = notebook.read() if notebook else {}
    with evaluating(original), evaluating(compressed), frozen(original):
        for block in steps.each("distill", "Distilling blocks", blocks, [block.name for block in blocks]):
            if block.name in found:
                continue
            most = iterations if block.name else network_iterations or iterations
            layers = _layers(block, compressed, adapters)
            errors = _refit(original, compressed, block, layers, learned, held_out, most, seed, read)
            if errors is not None:
                found[block.name] = errors
                logger.info("Block %s: loss %.3g before, %.3g after.", block.name or "(all)", *errors)
                if notebook:
                    notebook.write(found)
    return found


def _refit(
    original: nn.Module,
    compressed: nn.Module,
    block: Block,
    layers: Mapping[str, tuple[nn.Module, Writable]],
    learned: Sequence[object],
    held_out: Sequence[object],
    iterations: int,
    seed: int,
    outputs: Outputs,
) -> tuple[float, float] | None:
    module = compressed.get_submodule(block.name)
    if not layers:
        logger.info("Block %s is not distilled: no adapter can write to the stages of its chains.", block.name)
        return None
    whole = None if block.name else _whole(original, held_out[0], outputs)
    if not block.name and whole is None:
        return None
    loss, read = (Values(), _as_it_is) if whole is None else (whole.loss, whole.of)
    held = list(_samples(original, compressed, block.name, held_out, read))
    if not held:
        logger.info("Block %s is not distilled: it gives no tensor, or runs unlike the original.", block.name)
        return None
    wanted = enough(learned, math.inf if whole else _wanted(layers, held))
    samples = list(_samples(original, compressed, block.name, wanted, read))
    constant = _constant_cost(samples, held, loss)
    if not constant:
        logger.info("Block %s is not distilled: it puts out the same for all samples.", block.name)
        return None
    try:
        fitted = fit_module(module, layers, samples, held, loss, iterations, seed, read)
    except RuntimeError as error:  # checkpoints, for one, and whatever says torch.no_grad
        logger.warning("Block %s is not distilled: it cannot be differentiated: %s", block.name or "(all)", error)
        return None
    return fitted.before / constant, fitted.after / constant


def _as_it_is(output: object) -> Tensor | None:
    return output if isinstance(output, Tensor) else None


def _whole(original: nn.Module, batch: object, outputs: Outputs) -> Whole | None:
    """What the network as a whole is fitted to; None where there is nothing."""
    if outputs.is_lost:
        logger.warning(
            "The network as a whole is not distilled: what its output is was said by a function, which no plan can "
            "hold. Give it to apply() as output."
        )
        return None
    found: list[object] = []
    with hooked({original: lambda module, args, kwargs, output: found.append(output)}):
        call(original, batch)
    whole = outputs.whole(found[0])
    if whole is None:
        reasons = told(outputs.left_out) or "its outputs do not agree on the number of samples"
        logger.info("The network as a whole is not distilled, because no output says what an error costs: %s.", reasons)
    return whole


def fit_module(
    module: nn.Module,
    layers: Mapping[str, tuple[nn.Module, Writable]],
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    loss: Loss,
    iterations: int,
    seed: int,
    read: Read = _as_it_is,
) -> Minimum:
    """Refit some layers of a module, in place.

    :param module: a block, or the network itself.
    :param layers: the layers in it by their names there, with their adapters.
    :param samples: pairs of (args, kwargs) of its forward and outputs wanted.
    :param held_out: likewise.
    :param loss: what is lowered.
    :param iterations: the most iterations of conjugate gradients.
    :param seed: of the random probes.
    :param read: makes the tensor that is wanted of what the forward returns.
    :return: the weights, and the loss on the held-out samples before and after.
    """
    slots = {
        f"{name}.{each}": (layer, each)
        for name, (layer, _) in layers.items()
        for each, parameter in layer._parameters.items()
        if parameter is not None
    }
    weights = {name: layer.get_parameter(each).detach() for name, (layer, each) in slots.items()}
    buffers = [
        (each, name, value) for each in module.modules() for name, value in each._buffers.items() if value is not None
    ]

    def function(changed: Parameters, inputs: Any) -> Tensor:
        # copies, because a module may change its inputs in place and these are used again
        args, kwargs = _copied(inputs)
        kept = {(each, name): value.clone() for each, name, value in buffers}
        with swapped({**kept, **{slots[name]: value for name, value in changed.items()}}):
            # not by calling the module: what was recorded is between the hooks that others put on it
            output = read(module.forward(*args, **kwargs))
        if output is None:
            msg = "it puts out other tensors than the original"
            raise RuntimeError(msg)
        return output

    probed = samples[: math.ceil(PROBED / samples[0].target.shape[0])]
    # the fused kernels of attention cannot be differentiated forwards
    with frozen(module), sdpa_kernel(SDPBackend.MATH):
        curvature = Kronecker(function, layers, probed, len(probed) / len(samples), loss, seed)
        found = minimise(function, weights, samples, held_out, loss, curvature.solve, curvature.damping, iterations)
    for name, (layer, each) in slots.items():
        layer.get_parameter(each).copy_(found.weights[name])
    return found


def _constant_cost(samples: Sequence[Sample], held_out: Sequence[Sample], loss: Loss) -> float:
    """What constant outputs would cost on the samples held out: the mean of each batch, or where all of these are of
    one sample, the mean of the others."""
    targets = [each.target for each in held_out]
    within = sum(float(loss.value(each.mean(dim=0, keepdim=True).expand_as(each), each)) for each in targets)
    alike = [each.target for each in samples if each.target.shape[1:] == targets[0].shape[1:]]
    if within or not alike:
        return within
    mean = torch.cat(alike).mean(dim=0, keepdim=True)
    return sum(float(loss.value(mean.expand_as(each), each)) for each in targets if each.shape[1:] == mean.shape[1:])


def _layers(block: Block, model: nn.Module, adapters: Adapters) -> dict[str, tuple[nn.Module, Writable]]:
    """The stages of a block's chains by their names in it, where all stages of a chain can be written to."""
    found: dict[str, tuple[nn.Module, Writable]] = {}
    for chain in block.chains:
        inside = chain[len(block.name) :].lstrip(".")
        stages = {f"{inside}.{name}".lstrip("."): stage for name, stage in model.get_submodule(chain).named_children()}
        seen = {name: (stage, writable(stage, adapters)) for name, stage in stages.items()}
        known = {name: (stage, adapter) for name, (stage, adapter) in seen.items() if adapter is not None}
        if len(known) == len(stages):
            found.update(known)
    return found


def _copied(values: Any) -> Any:
    return mapped(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, values)


class _Enough(BaseException):
    """The calls looked for have been seen; the rest of the network need not run. No error, so that none is reported."""


def _samples(
    original: nn.Module, compressed: nn.Module, name: str, batches: Sequence[object], read: Read
) -> Iterator[Sample]:
    """What goes into a block of the compressed network, and what comes out of the original's on the same data."""
    for batch in batches:
        outputs = _outputs(original, name, batch, read)
        inputs = _inputs(compressed, name, batch, len(outputs))
        targets = [output for output in outputs if output is not None]
        if len(inputs) == len(outputs) == len(targets):
            yield from (Sample(each, target) for each, target in zip(inputs, targets, strict=True))


def _outputs(model: nn.Module, name: str, batch: object, read: Read) -> list[Tensor | None]:
    """What a block puts out at each call; None where it is no tensor."""
    outputs: list[Tensor | None] = []

    def keep(module: nn.Module, args: object, kwargs: object, output: object) -> None:
        found = read(output)
        outputs.append(None if found is None else found.clone())

    with hooked({model.get_submodule(name): keep}):
        call(model, batch)
    return outputs


def _inputs(model: nn.Module, name: str, batch: object, count: int) -> list[object]:
    """The arguments of a block at its first calls."""
    inputs: list[object] = []

    def stop(module: nn.Module, args: object, kwargs: object) -> None:
        inputs.append(_copied((args, kwargs)))
        if len(inputs) == count:
            raise _Enough

    with suppress(_Enough), hooked({model.get_submodule(name): stop}, before=True):
        call(model, batch)
    return inputs


def _wanted(layers: Mapping[str, tuple[nn.Module, Writable]], seen: Sequence[Sample]) -> int:
    """How many samples a block is fitted to."""
    kernels = [adapter.kernel(layer) for layer, adapter in layers.values()]
    inputs = max(kernel[0, 0].numel() for kernel in kernels)
    target = seen[0].target
    positions = target[0].numel() / max(kernel.shape[0] * kernel.shape[1] for kernel in kernels)
    return max(LEAST, math.ceil(POSITIONS * inputs / max(1.0, positions)))
