# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Where networks run and are timed: PyTorch itself, or OpenVINO (imported only where it is asked for)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lowrank_plugin.costs.stopwatch import LAYER_SECONDS, in_bursts, interleaved, processor
from lowrank_plugin.data.batches import ready, run
from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.support.copying import copied
from lowrank_plugin.support.messages import suggestion


class Runtime(Protocol):
    """Times modules; all times are milliseconds."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What the times depend on: backend, precision, version, processor and threads."""
        ...

    def layers(self, modules: Sequence[nn.Module], inputs: Tensor) -> list[float]:
        """How long modules take for one input, each after all the others, without the cost of starting a network."""
        ...

    def networks(self, networks: Sequence[nn.Module], example: object) -> list[float]:
        """How long whole networks take for an example, side by side."""
        ...


class PyTorchRuntime:
    """PyTorch in eager mode, on the model's device and in its dtype.

    :param model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        parameter = next(model.parameters(), torch.empty(0))
        gpu = parameter.device.type == "cuda"
        self._wait: Callable[[], None] = torch.cuda.synchronize if gpu else lambda: None
        self.facts = {
            "backend": "pytorch",
            "precision": "fp32" if parameter.dtype == torch.float32 else str(parameter.dtype).removeprefix("torch."),
            "version": torch.__version__,
            "processor": torch.cuda.get_device_name(parameter.device) if gpu else processor(),
            "threads": str(torch.get_num_threads()),
        }

    def layers(self, modules: Sequence[nn.Module], inputs: Tensor) -> list[float]:
        """The least of interleaved times: a module runs after all the others, its weights are cold as in a network."""
        inputs = ready(modules[0], inputs)
        return interleaved([self._run(module, inputs) for module in modules], LAYER_SECONDS * len(modules), pick=min)

    def networks(self, networks: Sequence[nn.Module], example: object) -> list[float]:
        """Interleaved medians of bursts."""
        example = ready(networks[0], example)
        return in_bursts([self._run(network, example) for network in networks])

    def _run(self, module: nn.Module, example: object) -> Callable[[], None]:
        if any(each.training for each in module.modules()):
            module = copied(module).eval()

        def once() -> None:
            with torch.inference_mode():
                run(module, example)
                self._wait()

        return once


class RuntimeKind(NamedTuple):
    """What the settings may ask for.

    :param make: called with a precision and the network; returns the runtime, or says what is missing.
    :param precisions: those that it can be timed in.
    """

    make: Callable[[str, nn.Module], Runtime]
    precisions: tuple[str, ...]


def make_runtime(settings: Mapping[str, str] | None, model: nn.Module) -> Runtime:
    """The runtime that the settings ask for.

    >>> make_runtime({"backend": "pytorch"}, nn.Linear(2, 2)).facts["precision"]
    'fp32'

    :param settings: the section's ``"runtime"``; PyTorch in the model's own precision where it is left out.
    :param model: the network that is to run there.
    :raises ConfigurationError: where it is unknown, not installed or lacks the precision.
    """
    settings = {"backend": "pytorch", "precision": "fp32", **(settings or {})}
    name, precision = settings["backend"], settings["precision"]
    if name not in RUNTIMES:
        msg = f"Unknown runtime {name!r}. {suggestion(name, RUNTIMES)}Take {_either(RUNTIMES)}."
        raise ConfigurationError(msg)
    kind = RUNTIMES[name]
    if precision not in kind.precisions:
        others = [other for other, each in RUNTIMES.items() if precision in each.precisions]
        instead = (
            f"the backend {_either(others)}, or {_either(kind.precisions)}" if others else _either(kind.precisions)
        )
        msg = f'The runtime "{name}" cannot be timed in {precision}; take {instead}.'
        raise ConfigurationError(msg)
    return kind.make(precision, model)


def _either(names: Iterable[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)


def _openvino(precision: str, model: nn.Module) -> Runtime:
    try:
        from lowrank_plugin.costs.openvino import OpenVinoRuntime
    except ImportError as error:
        msg = f'The runtime "openvino" cannot be used: {error}. Install it (pip install openvino) or take "pytorch".'
        raise ConfigurationError(msg) from error
    return OpenVinoRuntime(precision)


RUNTIMES: Mapping[str, RuntimeKind] = {
    "pytorch": RuntimeKind(lambda precision, model: PyTorchRuntime(model), ("fp32",)),
    "openvino": RuntimeKind(_openvino, ("fp32", "int8")),
}
"""Every runtime by the name that users write under ``"backend"``."""
