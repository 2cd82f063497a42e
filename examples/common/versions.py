# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""One network in four versions, compressed through the NNCF config and measured in OpenVINO."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nncf
from common import measure
from common.table import Row
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import lowrank_nncf

BATCH = 16


@dataclass(frozen=True)
class Task:
    """A network with its data.

    :param name: for titles.
    :param model: the network, in eval mode.
    :param calibration: images that it is compressed with; their labels are not used.
    :param validation: images and classes that its accuracy is measured on.
    """

    name: str
    model: nn.Module
    calibration: Dataset[tuple[Tensor, int]]
    validation: Dataset[tuple[Tensor, int]] | None = None

    @property
    def sample(self) -> Tensor:
        """One image with a batch dimension of 1."""
        return self.calibration[0][0][None]


def sections(budget: float, overflow_fix: str, decomposers: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """The compressed versions: what each is made from, and the section of the config that makes it.

    The last one starts from the low-rank network, so that its factors are solved for only once. A config with both
    sections gives the same network.

    :param budget: the share of the MACs that may remain.
    :param overflow_fix: as NNCF's option of the same name.
    :param decomposers: as in the section ``"lowrank"``.
    """
    lowrank = {"algorithm": "lowrank", "budget": {"macs": budget}, "decomposers": decomposers}
    quantization = {"algorithm": "quantization", "overflow_fix": overflow_fix}
    return {
        "int8": ("original", quantization),
        "lowrank": ("original", lowrank),
        "lowrank + int8": ("lowrank", quantization),
    }


def measured(
    task: Task,
    folder: Path,
    budget: float,
    overflow_fix: str,
    seconds: float = 12.0,
    log: Callable[[str], None] = print,
    decomposers: str = "int8",
) -> list[Row]:
    """Compress a network and measure the original and the three compressed versions.

    :param task: the network and its data.
    :param folder: where the OpenVINO files are left.
    :param budget: the share of the MACs that may remain.
    :param overflow_fix: as NNCF's option of the same name.
    :param seconds: how long to measure latency, in all.
    :param log: called with lines on the progress.
    :param decomposers: ``"int8"`` or ``"auto"``.
    """
    dataset = nncf.Dataset(DataLoader(task.calibration, batch_size=BATCH), lambda item: item[0])
    models, sizes = {"original": task.model}, {"original": measure.size(task.model, task.sample)}
    for name, (source, section) in sections(budget, overflow_fix, decomposers).items():
        log(f"\n{name}: create_compressed_model on {source} with {json.dumps(section)}")
        start = time.perf_counter()
        config = {"input_info": {"sample_size": list(task.sample.shape)}, "compression": section}
        controller, models[name] = lowrank_nncf.create_compressed_model(models[source], config, dataset)
        log(f"{controller.statistics().to_str()}\n{name}: done in {time.perf_counter() - start:.1f} s")
        # Quantizers do not change the layers, so a quantized version counts as what it was made from.
        sizes[name] = measure.size(models[name], task.sample) if section["algorithm"] == "lowrank" else sizes[source]
    return _rows(task, models, sizes, folder, seconds, log)


def _rows(
    task: Task,
    models: dict[str, nn.Module],
    sizes: dict[str, measure.Size],
    folder: Path,
    seconds: float,
    log: Callable[[str], None],
) -> list[Row]:
    log("\nConverting to OpenVINO")
    paths = {name: folder / f"{name.replace(' + ', '_')}.xml" for name in models}
    files = {name: measure.save_openvino(model, task.sample, paths[name]) for name, model in models.items()}
    networks = {name: measure.compile_openvino(path) for name, path in paths.items()}
    log(f"Measuring latency for {seconds:.0f} s")
    latencies = measure.latencies(networks, task.sample, seconds)
    fidelities: dict[str, measure.Fidelity] = {}
    if task.validation is not None:
        samples: Sequence[tuple[Tensor, int]] = [task.validation[index] for index in range(len(task.validation))]
        labels = [int(label) for _, label in samples]
        log(f"Measuring accuracy on {len(samples)} images")
        found = {name: measure.outputs(network, samples) for name, network in networks.items()}
        fidelities = {name: measure.fidelity(each, found["original"], labels) for name, each in found.items()}
    rows = []
    for name in models:
        row = Row(name, sizes[name].parameters, sizes[name].macs, files[name], latencies[name])
        if name in fidelities:
            each = fidelities[name]
            row = replace(row, accuracy=each.top1, agreement=each.agreement, kl=each.kl)
        rows.append(row)
    return rows
