# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Statistics of a network as a value: collected once, used for many budgets, merged, saved and loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_plugin.data.batches import batch_size, enough
from lowrank_plugin.data.samples import leaves
from lowrank_plugin.errors import StatisticsError
from lowrank_plugin.layers.survey import Layer
from lowrank_plugin.outputs.kinds import AUTO, Described, read_described, written_described
from lowrank_plugin.plugins import OWN_DISTRIBUTION
from lowrank_plugin.settings import Settings
from lowrank_plugin.statistics import file
from lowrank_plugin.statistics.collection import Observed
from lowrank_plugin.statistics.gradients import SAMPLES
from lowrank_plugin.statistics.weighing import Weighed, Weights, weight_at
from lowrank_plugin.support.messages import listed
from lowrank_plugin.support.validation import JsonObject

_FACTS = ("weights", "costs", "samples", "gradient_samples", "data", "example", "origin")
"""What a file holds beside tensors."""


@dataclass(frozen=True)
class Statistics:
    """What was seen of every compressible layer, and of which network and data.

    >>> import lowrank_plugin, tempfile
    >>> model = nn.Sequential(nn.Linear(16, 16))
    >>> monday, tuesday = (lowrank_plugin.collect_statistics(model, [torch.randn(32, 16)]) for _ in range(2))
    >>> week = monday.merge(tuesday)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     week.save(f"{folder}/week.safetensors")
    ...     Statistics.load(f"{folder}/week.safetensors").samples
    64

    :param layers: moments of the input patches and statistics of the outputs, by layer name.
    :param weights: SHA-256 of each layer's weight, by which the network is known again.
    :param gradients: second moments of the output gradients [G, T, T], float64; empty where there are none.
    :param samples: how many samples were seen.
    :param costs: what errors at each layer cost the model, see :data:`lowrank_plugin.statistics.weighing.Weights`;
        empty where that is not known.
    :param gradient_samples: how many of them the gradients and costs are from.
    :param data: SHA-256 of the model inputs, one for each run.
    :param example: shapes and dtypes of one model input, as JSON; None where it holds more than tensors.
    :param origin: seed, positions, versions, what was said of the outputs, and the unit of the costs, as JSON.
    """

    layers: Mapping[str, Observed]
    weights: Mapping[str, str]
    gradients: Mapping[str, Tensor]
    costs: Mapping[str, Weights]
    samples: int
    gradient_samples: int
    data: tuple[str, ...]
    example: Any = None
    origin: Mapping[str, object] = field(default_factory=dict)

    @property
    def unit(self) -> str | None:
        """What the costs are in; None where that is not known, as of older files."""
        unit = self.origin.get("unit")
        return unit if isinstance(unit, str) else None

    def output_for(self, wanted: Described) -> Described:
        """What the model's outputs are, where these statistics are used.

        :param wanted: what the user says of them now; ``"auto"`` stands for what was said when these were collected.
        :raises StatisticsError: where something else was said then.
        """
        said = self.origin.get("output", AUTO)
        if wanted == AUTO:
            return read_described(said)
        if written_described(wanted) != said:
            msg = (
                f'The statistics were collected with "output": {json.dumps(said)}, and what errors cost depends on it. '
                f"Now it is {json.dumps(written_described(wanted))}: leave it out, or collect statistics with it."
            )
            raise StatisticsError(msg)
        return wanted

    def check(self, model: nn.Module, layers: Mapping[str, Layer]) -> None:
        """See that these are statistics of a network.

        :param model: the network that they are to be used for.
        :param layers: its compressible layers.
        :raises StatisticsError: where a layer of one name has other weights, or all layers have other names.
        """
        if layers and not any(name in self.weights for name in layers):
            msg = (
                f"The statistics are of another network: they know {listed(self.weights)}, but this one has "
                f"{listed(layers)}. Collect statistics of this network."
            )
            raise StatisticsError(msg)
        for name, layer in layers.items():
            if name in self.weights and self.weights[name] != digest(layer.adapter.kernel(model.get_submodule(name))):
                msg = (
                    f"The statistics are of another network: the weight of its layer {name!r} differs from this one's. "
                    "Collect statistics of this network."
                )
                raise StatisticsError(msg)

    def merge(self, *others: Statistics) -> Statistics:
        """Those of all runs together, as if it had been one, except that each drew its own positions and labels.

        :param others: statistics of the same network on other data.
        :raises StatisticsError: where they are of another network, or of data that is already in.
        """
        merged = self
        for other in others:
            merged = merged._with(other)
        return merged

    def _with(self, other: Statistics) -> Statistics:
        if self.weights != other.weights:
            different = listed(dict(sorted({*self.weights.items()} ^ {*other.weights.items()})))
            msg = f"Statistics of different networks cannot be merged: they differ in the layers {different}."
            raise StatisticsError(msg)
        if self.origin.get("output", AUTO) != other.origin.get("output", AUTO):
            msg = 'Statistics cannot be merged that were collected with different values of "output".'
            raise StatisticsError(msg)
        if twice := set(self.data) & set(other.data):
            msg = f"Both statistics are of the same data (SHA-256 {min(twice)[:12]}...), which would then count twice."
            raise StatisticsError(msg)
        layers = {
            name: self.layers[name] + other.layers[name]
            if name in self.layers and name in other.layers
            else (self.layers if name in self.layers else other.layers)[name]
            for name in {**self.layers, **other.layers}
        }
        total = max(1, self.gradient_samples + other.gradient_samples)
        shares = (self.gradient_samples / total, other.gradient_samples / total)
        gradients = {
            name: shares[0] * self.gradients[name] + shares[1] * other.gradients[name].to(self.gradients[name])
            for name in self.gradients.keys() & other.gradients.keys()
        }
        return Statistics(
            layers,
            self.weights,
            {name: gradients[name] for name in self.gradients if name in gradients},
            {
                name: [
                    (error, shares[0] * cost + shares[1] * weight_at(other.costs[name], error)) for error, cost in each
                ]
                for name, each in self.costs.items()
                if name in other.costs
            },
            self.samples + other.samples,
            self.gradient_samples + other.gradient_samples,
            (*self.data, *other.data),
            self.example,
            self.origin,
        )

    def inputs(self) -> object:
        """Zeros in the shape of a model input that was seen.

        :raises StatisticsError: where its structure could not be written down.
        """
        if self.example is None:
            msg = "The statistics do not know what the model's input looks like; give an example_input."
            raise StatisticsError(msg)
        example = _unfold(self.example)
        # positional arguments, which were a tuple
        return tuple(example) if isinstance(example, list) else example

    def save(self, path: str | Path) -> None:
        """Write everything to one file in the safetensors format, in float64. A file of that name is replaced at once.

        :param path: of the file.
        :raises StatisticsError: where it cannot be written; what was there before is still there.
        """
        file.write(Path(path), self.layers, self.gradients, {key: getattr(self, key) for key in _FACTS})

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read a file.

        :param path: of the file.
        :return: statistics with tensors on the CPU.
        :raises StatisticsError: where it is missing, cut short, something else, or of a newer format.
        """
        layers, gradients, manifest = file.read(Path(path))
        facts = {key: manifest[key] for key in _FACTS}
        return cls(layers=layers, gradients=gradients, **{**facts, "data": tuple(facts["data"])})


def summarise(
    model: nn.Module,
    layers: Mapping[str, Layer],
    observed: Mapping[str, Observed],
    gradients: Mapping[str, Tensor],
    weighed: Weighed,
    batches: Sequence[object],
    settings: Settings,
) -> Statistics:
    """Put what was seen together with what it was seen of.

    :param model: the network, whose weights are hashed.
    :param layers: its compressible layers.
    :param observed: what was seen of them, by layer name.
    :param gradients: second moments of their output gradients.
    :param weighed: what errors at each of them cost the model.
    :param batches: the model inputs.
    :param settings: for the seed, the number of positions, and what the outputs are.
    """
    versions = {name: metadata.version(name) for name in (OWN_DISTRIBUTION, "torch")}
    return Statistics(
        observed,
        {name: digest(layer.adapter.kernel(model.get_submodule(name))) for name, layer in layers.items()},
        gradients,
        weighed.weights,
        sum(batch_size(batch) for batch in batches),
        sum(batch_size(batch) for batch in enough(batches, SAMPLES)) if gradients or weighed.weights else 0,
        (digest(batches),),
        fold(batches[0]),
        {
            "seed": settings.seed,
            "positions": settings.calibration.positions,
            "versions": versions,
            **({} if settings.output == AUTO else {"output": written_described(settings.output)}),
            **({} if weighed.unit is None else {"unit": weighed.unit}),
        },
    )


def digest(values: object) -> str:
    """SHA-256 of all tensors in any nesting of lists, tuples and dicts, their shapes and dtypes included."""
    total = hashlib.sha256()
    for leaf in leaves(values):
        if isinstance(leaf, Tensor):
            total.update(f"{tuple(leaf.shape)}{leaf.dtype}".encode())
            total.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def fold(example: object) -> Any:
    """Shapes and dtypes of the tensors of a model input, as JSON; None where it holds anything else.

    >>> fold({"x": torch.zeros(1, 2)})
    {'dict': {'x': {'shape': [1, 2], 'dtype': 'float32'}}}
    """
    if isinstance(example, Tensor):
        return {"shape": list(example.shape), "dtype": str(example.dtype).removeprefix("torch.")}
    if isinstance(example, Mapping):
        parts: Any = {key: fold(value) for key, value in example.items()}
        return None if None in parts.values() else {"dict": parts}
    if isinstance(example, tuple | list):
        parts = [fold(value) for value in example]
        return None if None in parts else {"list": parts}
    return None


def _unfold(folded: JsonObject) -> Any:
    if "dict" in folded:
        return {key: _unfold(value) for key, value in folded["dict"].items()}
    if "list" in folded:
        return [_unfold(value) for value in folded["list"]]
    return torch.zeros(folded["shape"], dtype=getattr(torch, folded["dtype"]))
