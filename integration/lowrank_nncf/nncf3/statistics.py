# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What was done to a model, as values and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TypeVar, cast

import nncf
from nncf.torch.function_hook import is_wrapped
from nncf.torch.quantization.layers import BaseQuantizer
from torch import nn

from lowrank_nncf.nncf3.model.wrapping import hooks
from lowrank_nncf.nncf3.sections import LOWRANK, PRUNING, QUANTIZATION
from lowrank_plugin import report
from lowrank_plugin.host import RECORD, Json, Report

Record = TypeVar("Record", "PruningStatistics", "QuantizationStatistics")


@dataclass(frozen=True)
class QuantizationStatistics:
    """How much of a model is quantized.

    >>> QuantizationStatistics(quantized_layers=2, layers=3, activation_quantizers=4, bits=(8,)).to_str()
    'Quantization to 8 bits: the weights of 2 of 3 layers, 4 activations'

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
        quantizers = list(hooks(model, (BaseQuantizer,)))
        weights = [name for name, _ in quantizers if _is_weight(name, layers)]
        return cls(
            quantized_layers=len(weights),
            layers=len(layers),
            activation_quantizers=len(quantizers) - len(weights),
            bits=tuple(sorted({hook.num_bits for _, hook in quantizers})),
        )

    def to_dict(self) -> Json:
        """Return plain JSON values."""
        return asdict(self)

    def to_str(self) -> str:
        """Return one line of text."""
        bits = " and ".join(map(str, self.bits))
        return (
            f"Quantization to {bits} bits: the weights of {self.quantized_layers} of {self.layers} layers, "
            f"{self.activation_quantizers} activations"
        )


@dataclass(frozen=True)
class PruningStatistics:
    """How many weights of a model are pruned.

    >>> PruningStatistics("rb_sparsity", 0.5, 0.25, {"conv.weight": 0.5}).to_str()
    'Pruning by rb_sparsity: 50.0% of the weights of 1 layers, 25.0% of all parameters'

    :param algorithm: the section of the config.
    :param sparsity: the share of zeros in the tensors that have a mask.
    :param global_sparsity: the number of those zeros over that of all parameters.
    :param tensors: the share of zeros in each of them, by the name of the parameter.
    """

    algorithm: str
    sparsity: float
    global_sparsity: float
    tensors: Mapping[str, float]

    @classmethod
    def of(cls, model: nn.Module, algorithm: str) -> PruningStatistics:
        """Count the zeros in the masks of a model.

        :param model: a model that NNCF 3 has pruned; one that carries no hooks has no masks.
        :param algorithm: the section of the config.
        """
        if not is_wrapped(model):
            return cls(algorithm, 0.0, 0.0, {})
        found = nncf.pruning_statistic(model)
        tensors = {each.tensor_name: each.pruned_ratio for each in found.pruned_tensors}
        return cls(algorithm, found.pruning_ratio, found.global_pruning_ratio, dict(sorted(tensors.items())))

    def to_dict(self) -> Json:
        """Return plain JSON values."""
        return asdict(self)

    def to_str(self) -> str:
        """Return one line of text."""
        return (
            f"Pruning by {self.algorithm}: {self.sparsity:.1%} of the weights of {len(self.tensors)} layers, "
            f"{self.global_sparsity:.1%} of all parameters"
        )


@dataclass(frozen=True)
class Statistics:
    """What was done to a model, one value for each section of the config.

    :param lowrank: the per-layer report of the decomposition; None if the config has no such section.
    :param pruning: the zeros; None if the config has no such section.
    :param quantization: the quantizers; None if the config has no such section.
    :param others: what algorithms of third parties returned, by their names.
    """

    lowrank: Report | None = None
    pruning: PruningStatistics | None = None
    quantization: QuantizationStatistics | None = None
    others: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, by_name: Mapping[str, object]) -> Statistics:
        """Look at a model as it is now, in the midst of its training perhaps.

        >>> Statistics.of(nn.ReLU(), {"weight_clustering": {"clusters": 16}}).to_str()
        "weight_clustering: {'clusters': 16}"

        :param model: the compressed model.
        :param by_name: what each algorithm returned when it was applied; it counts for what the model no longer shows,
            such as the quantizers of one that has been stripped.
        """
        others = dict(by_name)
        others.pop(LOWRANK, None)
        pruning, quantization = None, others.pop(QUANTIZATION, None)
        for name in PRUNING & others.keys():
            found = PruningStatistics.of(model, name)
            before = others.pop(name)
            pruning = found if found.tensors else _record(PruningStatistics, before)
        if quantization is not None:
            live = QuantizationStatistics.of(model)
            quantization = live if live.bits else _record(QuantizationStatistics, quantization)
        return cls(report(model) if hasattr(model, RECORD) else None, pruning, quantization, others)

    def to_str(self) -> str:
        """Return a text with a table of the layers."""
        parts = [part.to_str() for part in (self.lowrank, self.pruning, self.quantization) if part is not None]
        for name, value in self.others.items():
            parts.append(value.to_str() if hasattr(value, "to_str") else f"{name}: {value}")
        return "\n\n".join(parts)

    def to_dict(self) -> Json:
        """Return plain JSON values."""
        return {
            "lowrank": None if self.lowrank is None else self.lowrank.to_dict(),
            "pruning": None if self.pruning is None else self.pruning.to_dict(),
            "quantization": None if self.quantization is None else self.quantization.to_dict(),
            **{name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in self.others.items()},
        }


def _record(kind: type[Record], value: object) -> Record:
    """Statistics as they were returned, or as they come out of a saved state."""
    return value if isinstance(value, kind) else kind(**cast("Json", value))


_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def _is_weight(hook_name: str, layers: list[str]) -> bool:
    """Whether a hook sits on the weight of a layer: NNCF keys hooks by operation and the port of the operand."""
    kind, _, key = hook_name.partition(".")
    operation, _, port = key.rsplit(".", 1)[0].rpartition("__")
    module = operation.rsplit("/", 2)[0].replace("/", ".")
    return kind == "pre_hooks" and int(port) == 1 and module in layers
