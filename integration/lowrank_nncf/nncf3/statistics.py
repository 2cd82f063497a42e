# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What was done to a model, as values and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nncf.torch.function_hook.hook_storage import HookStorage
from nncf.torch.quantization.layers import BaseQuantizer
from torch import nn

from lowrank_plugin.reporting import Report


@dataclass(frozen=True)
class QuantizationStatistics:
    """How much of a model is quantized.

    :param quantized_layers: layers whose weights are quantized.
    :param layers: layers that have weights to quantize.
    :param activation_quantizers: quantizers of activations.
    :param bits: the widths in use.
    """

    quantized_layers: int
    layers: int
    activation_quantizers: int
    bits: tuple[int, ...]

    @classmethod
    def of(cls, model: nn.Module) -> QuantizationStatistics:
        """Count the quantizers of a model.

        :param model: a model that NNCF 3 has quantized.
        """
        layers = [name for name, module in model.named_modules() if isinstance(module, _WEIGHTED)]
        hooks = [
            (name, hook)
            for storage in model.modules()
            if isinstance(storage, HookStorage)
            for name, hook in storage.named_hooks()
            if isinstance(hook, BaseQuantizer)
        ]
        weights = [name for name, _ in hooks if _is_weight(name, layers)]
        return cls(
            quantized_layers=len(weights),
            layers=len(layers),
            activation_quantizers=len(hooks) - len(weights),
            bits=tuple(sorted({hook.num_bits for _, hook in hooks})),
        )

    def to_str(self) -> str:
        """Return one line of text."""
        bits = " and ".join(map(str, self.bits))
        return (
            f"Quantization to {bits} bits: the weights of {self.quantized_layers} of {self.layers} layers, "
            f"{self.activation_quantizers} activations"
        )


@dataclass(frozen=True)
class Statistics:
    """What was done to a model, one value for each section of the config.

    :param lowrank: the per-layer report of the decomposition; None if the config has no such section.
    :param quantization: the quantizers; None if the config has no such section.
    :param others: what algorithms of third parties returned, by their names.
    """

    lowrank: Report | None = None
    quantization: QuantizationStatistics | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, by_name: Mapping[str, Any]) -> Statistics:
        """Sort the statistics of a config's algorithms.

        >>> Statistics.of({"weight_clustering": {"clusters": 16}}).to_str()
        "weight_clustering: {'clusters': 16}"

        :param by_name: what each algorithm returned.
        """
        own = {name: by_name.get(name) for name in ("lowrank", "quantization")}
        return cls(**own, others={name: value for name, value in by_name.items() if name not in own})

    def to_str(self) -> str:
        """Return a text with a table of the layers."""
        parts = [part.to_str() for part in (self.lowrank, self.quantization) if part is not None]
        for name, value in self.others.items():
            parts.append(value.to_str() if hasattr(value, "to_str") else f"{name}: {value}")
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "lowrank": None if self.lowrank is None else self.lowrank.to_dict(),
            "quantization": None if self.quantization is None else asdict(self.quantization),
            **{name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in self.others.items()},
        }


_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def _is_weight(hook_name: str, layers: list[str]) -> bool:
    """Whether a hook sits on the weight of a layer: NNCF keys hooks by operation and the port of the operand."""
    kind, _, key = hook_name.partition(".")
    operation, _, port = key.rsplit(".", 1)[0].rpartition("__")
    module = operation.rsplit("/", 2)[0].replace("/", ".")
    return kind == "pre_hooks" and int(port) == 1 and module in layers
