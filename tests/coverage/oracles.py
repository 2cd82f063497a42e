# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What rows are judged by, written without the code that is judged."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode


def tensors(value: Any) -> list[Tensor]:
    """All tensors of an output, in order, whatever containers they are in.

    >>> [each.shape[0] for each in tensors({"a": torch.zeros(1), "b": [torch.zeros(2), None]})]
    [1, 2]
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif dataclasses.is_dataclass(value):
        value = [getattr(value, each.name) for each in dataclasses.fields(value)]
    if isinstance(value, list | tuple):
        return [tensor for each in value for tensor in tensors(each)]
    return []


def called(model: nn.Module, batch: Any) -> Any:
    """Run a network on a copy of a batch: keywords from a mapping, positions from a tuple."""
    batch = copy.deepcopy(batch)
    with torch.no_grad():
        if isinstance(batch, Mapping):
            return model(**batch)
        return model(*batch) if isinstance(batch, tuple) else model(batch)


def outputs(model: nn.Module, batch: Any, heads: Sequence[str] = ()) -> list[Tensor]:
    """What a network puts out, or what some of its modules do.

    :param model: the network.
    :param batch: its input.
    :param heads: names of modules; none for the network itself.
    """
    seen: list[Tensor] = []
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.extend(tensors(output)))
        for name in heads
    ]
    try:
        put_out = tensors(called(model, batch))
    finally:
        for hook in hooks:
            hook.remove()
    return seen if heads else put_out


def same(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether outputs agree bit for bit."""
    return len(ones) == len(others) and all(
        one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
        for one, other in zip(ones, others, strict=True)
    )


def difference(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest distance of two outputs over the norm of the first; infinite where they are of different shapes.

    >>> difference([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 4.5])])
    0.1
    """
    if [each.shape for each in ones] != [each.shape for each in others]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(ones, others, strict=True) if a.is_floating_point()]
    return max((float((a - b).norm() / a.norm().clamp_min(1e-30)) for a, b in pairs), default=0.0)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Have torch compute attention operator by operator: fused ones are neither counted nor traced."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def macs(model: nn.Module, batch: Any) -> float:
    """Multiply-accumulates of one run, by torch's own counter, with attention as plain matrix products.

    >>> macs(nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 5, 5)) == 9 * 8 * 27
    True
    """
    # the counter's hooks fail on views of parameters that are made without gradients
    learned = [each for each in model.parameters() if each.requires_grad]
    for each in learned:
        each.requires_grad_(False)
    try:
        with plain_attention(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            called(model, batch)
    finally:
        for each in learned:
            each.requires_grad_(True)
    return counter.get_total_flops() / 2


def parameters(model: nn.Module) -> int:
    """How many numbers are learned; one that several modules share counts once."""
    return sum(each.numel() for each in model.parameters())


def settle(model: nn.Module, batch: Any) -> None:
    """Give batch norms statistics of the data, and values to weights that are next to zero.

    With the batch norms of a fresh network, signals fade or explode with depth; with zeros in its last layer or in the
    scales of its blocks, most of it has no say in the output, and nothing wrong with it would be seen.

    :param model: the network.
    :param batch: its input.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.is_floating_point() and "bias" not in name and bool((weight.abs() < 1e-3).all()):
                weight.normal_(std=0.1)
    norms = [each for each in model.modules() if isinstance(each, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    hooks = [norm.register_forward_pre_hook(_train_where_possible) for norm in norms]
    for norm in norms:
        norm.momentum = 0.9
    called(model, batch)
    for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
        norm.momentum = momentum
        hook.remove()
        norm.eval()


def _train_where_possible(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    # one value a channel has no variance
    norm.train(inputs[0].numel() > inputs[0].shape[1])


class Snapshot:
    """A model as it is, to be compared with how it is later.

    :param model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._values = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        self._modules = list(_identities(model))

    def changes(self) -> list[str]:
        """What is no longer so."""
        state = self._model.state_dict()
        found = [name for name, value in self._values.items() if name not in state or not _equal(value, state[name])]
        if list(_identities(self._model)) != self._modules:
            found.append("its modules, their flags or their hooks")
        return found


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())


def _identities(model: nn.Module) -> Iterator[tuple[Any, ...]]:
    for name, module in model.named_modules():
        learned = [(key, id(each), each.requires_grad) for key, each in module.named_parameters(recurse=False)]
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        yield name, type(module), id(module), module.training, learned, hooks


class Flat(nn.Module):
    """A network as exporters want it: tensors in, tensors out.

    :param model: the network.
    :param keywords: the names of its inputs; none for positions.
    """

    def __init__(self, model: nn.Module, keywords: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.keywords = tuple(keywords)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run it."""
        if self.keywords:
            return tuple(tensors(self.model(**dict(zip(self.keywords, inputs, strict=True)))))
        return tuple(tensors(self.model(*inputs)))


def part(model: nn.Module, batch: Any, name: str) -> tuple[nn.Module, Any]:
    """A module of a network, and what it gets there in a run of all of it.

    :param model: the network.
    :param batch: its input.
    :param name: of the module; "" for all.
    """
    if not name:
        return model, batch
    module, seen = model.get_submodule(name), []
    hook = module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    try:
        called(model, batch)
    finally:
        hook.remove()
    return module, seen[0]


def exported(model: nn.Module, batch: Any) -> float:
    """How far the network is from itself as OpenVINO runs it on the CPU in float32: see :func:`difference`.

    :param model: the network.
    :param batch: its input.
    """
    import openvino

    keywords = list(batch) if isinstance(batch, Mapping) else []
    inputs = tensors(batch)
    flat = Flat(model, keywords).eval()
    # it would report every conversion over the network, from a process of its own, but not in continuous integration
    with mock.patch.dict(os.environ, {"CI": "true"}), plain_attention():
        converted = openvino.convert_model(flat, example_input=tuple(inputs))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(converted, "CPU", settings)
    results = compiled([each.numpy() for each in inputs])
    found = [torch.from_numpy(results[place].copy()) for place in range(len(compiled.outputs))]
    with torch.no_grad():
        wanted = list(flat(*inputs))
    return difference(wanted, found)
