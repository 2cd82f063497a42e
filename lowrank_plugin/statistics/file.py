# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Statistics in a file: tensors in the safetensors format, everything else as JSON in its metadata."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from lowrank_plugin.errors import StatisticsError
from lowrank_plugin.statistics.autocorrelation import Autocorrelation, Axis, Geometry
from lowrank_plugin.statistics.collection import Observed
from lowrank_plugin.statistics.moments import ChannelStatistics, Moments
from lowrank_plugin.statistics.vectors import Inputs, Vectors
from lowrank_plugin.support.files import read_whole, write_whole
from lowrank_plugin.support.validation import Json, JsonObject

FORMAT = 1
_KEY = "lowrank_statistics"


def write(
    path: Path,
    layers: Mapping[str, Observed],
    gradients: Mapping[str, Tensor] | None = None,
    facts: JsonObject | None = None,
) -> None:
    """Write what was seen of layers, in the place of an old file if there is one.

    >>> import tempfile, torch
    >>> seen = Observed(outputs=[ChannelStatistics.of(torch.ones(5, 2))])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder) / "seen.safetensors", {"conv": seen}, facts={"samples": 5})
    ...     layers, _, facts = read(Path(folder) / "seen.safetensors")
    >>> layers["conv"].outputs[0].mean, facts["samples"]
    (tensor([1., 1.], dtype=torch.float64), 5)

    :param path: of the file.
    :param layers: what was seen, by layer name; of each at least one output.
    :param gradients: second moments of output gradients [G, T, T] by layer name.
    :param facts: anything else, as JSON; the keys ``"format"``, ``"layers"`` and ``"gradients"`` are taken.
    :raises StatisticsError: where it cannot be written; what was there before is still there.
    """
    tensors: dict[str, Tensor] = {}
    manifest: Json = {"format": FORMAT, "layers": {}}
    for index, (name, observed) in enumerate(layers.items()):
        manifest["layers"][name] = {"index": index, **_pack(f"{index}.", observed, tensors)}
    for index, (name, gradient) in enumerate((gradients or {}).items()):
        manifest.setdefault("gradients", []).append(name)
        tensors[f"gradient.{index}"] = gradient
    try:
        write_whole(path, tensors, {_KEY: json.dumps({**manifest, **(facts or {})})})
    except (OSError, SafetensorError) as error:
        msg = f"Cannot write statistics to {str(path)!r}, nothing was changed there. {type(error).__name__}: {error}"
        raise StatisticsError(msg) from error


def read(path: Path) -> tuple[dict[str, Observed], dict[str, Tensor], JsonObject]:
    """Read a file that :func:`write` wrote.

    :param path: of the file.
    :return: layers, gradients and facts; the tensors, on the CPU, are mapped into memory.
    :raises StatisticsError: where it is missing, cut short, something else, or of a newer format.
    """
    start = f"Cannot read statistics from {str(path)!r}; it is no whole file of them."
    manifest, tensors = read_whole(path, _KEY, lambda cause: StatisticsError(f"{start} {cause}"))
    if manifest.get("format") != FORMAT:
        found = manifest.get("format", "none")
        msg = f"Cannot read {str(path)!r}: expected statistics of format {FORMAT}, found {found}."
        raise StatisticsError(msg)
    layers = {name: _unpack(f"{entry['index']}.", entry, tensors) for name, entry in manifest["layers"].items()}
    gradients = {name: tensors[f"gradient.{index}"] for index, name in enumerate(manifest.get("gradients", ()))}
    return layers, gradients, manifest


def _pack(prefix: str, observed: Observed, tensors: dict[str, Tensor]) -> Json:
    patches = observed.patches
    entry: Json = {}
    if patches.count and isinstance(patches, Vectors):
        entry, tensors[prefix + "vectors"] = {"count": patches.count}, patches.rows
    elif patches.count:
        entry = {"count": patches.count}
        if isinstance(patches, Autocorrelation):
            entry = {"samples": patches.samples, "geometry": dataclasses.asdict(patches.geometry)}
        for key in ("shift", "sums", "products"):
            tensors[prefix + key] = getattr(patches, key)
    outputs = observed.outputs[1:]
    total = sum(outputs, start=observed.outputs[0])
    tensors[prefix + "output_mean"], tensors[prefix + "output_variance"] = total.mean, total.variance
    return {**entry, "outputs": total.count}


def _unpack(prefix: str, entry: JsonObject, tensors: Mapping[str, Tensor]) -> Observed:
    sums: Json = {key: tensors.get(prefix + key) for key in ("shift", "sums", "products")}
    patches: Inputs | Autocorrelation = Moments(entry.get("count", 0), **sums)
    if (vectors := tensors.get(prefix + "vectors")) is not None:
        patches = Vectors(vectors)
    if "geometry" in entry:
        stored = entry["geometry"]
        axes = tuple(Axis(**axis) for axis in stored["axes"])
        patches = Autocorrelation(Geometry(stored["groups"], stored["channels"], axes), entry["samples"], **sums)
    outputs = ChannelStatistics(entry["outputs"], tensors[prefix + "output_mean"], tensors[prefix + "output_variance"])
    return Observed(patches, [outputs])
