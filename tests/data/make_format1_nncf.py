# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Writes what the hosts write of the small network, with the NNCF that is installed: files, or states and weights.

Run as ``python -m data.make_format1_nncf FOLDER`` in ``tests``, where ``data.make_format1`` has been. Weights are
brought to multiples of 1/8 and the steps of quantizers to powers of two before they are written, so that outputs are
exact in float64.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# NNCF reads them on import: nothing is to be reported, and compiling its extension may take minutes
os.environ.setdefault("NNCF_CI", "1")
os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "900")

import nncf
import torch
from data.make_format1 import batches, images, network, write
from safetensors.torch import save_file
from torch import Tensor, nn

import lowrank_nncf

LOWRANK = {"algorithm": "lowrank", "ranks": {"second": [4, 5], "hidden": 3}, "decomposers": ["tucker2", "svd"]}
PRUNING = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.25}
SECTIONS: dict[str, list[dict[str, Any]]] = {
    "lowrank": [LOWRANK],
    "pruned": [LOWRANK, {**PRUNING, "params": {"schedule": "polynomial", "sparsity_target": 0.5}}],
    "learned": [LOWRANK, {"algorithm": "rb_sparsity"}],
    "int8": [LOWRANK, {"algorithm": "quantization"}],
}
"""What NNCF 3 compresses with, by the names of the files."""

SECTIONS_2: dict[str, list[dict[str, Any]]] = {"lowrank": [LOWRANK], "pruned": [LOWRANK, PRUNING]}
"""What NNCF 2 compresses with."""


def settle(model: nn.Module) -> None:
    """Bring weights to multiples of 1/8 and the steps of quantizers to powers of two, at least 1/64.

    :param model: changed in place.
    """
    values = model.state_dict()
    for name, value in values.items():
        if name.endswith(".scale"):
            high = 127 if values[name.replace(".scale", ".signed_tensor")] else 255
            values[name] = high * (value / high).log2().ceil().clamp(min=-6).exp2()
        elif name.rpartition(".")[2] in ("weight", "bias"):
            values[name] = (value * 8).round() / 8
    model.load_state_dict(values)


def put_out(model: nn.Module, inputs: Tensor) -> Tensor:
    """What a settled network puts out, exactly; it is changed.

    :param model: the network.
    :param inputs: multiples of 1/64.
    """
    model.double().eval()
    with torch.no_grad():
        return model(inputs.double())


def make_nncf3(folder: Path) -> None:
    """Files of compressed networks, with their controllers two epochs on."""
    (folder / "nncf3").mkdir(exist_ok=True)
    for name, sections in SECTIONS.items():
        config = {"input_info": {"sample_size": [1, 3, 8, 8]}, "compression": sections}
        controller, compressed = lowrank_nncf.create_compressed_model(
            network(folder), config, nncf.Dataset(batches(folder))
        )
        settle(compressed)
        controller.scheduler.epoch_step()
        controller.scheduler.epoch_step()
        lowrank_nncf.save(folder / "nncf3" / f"{name}.safetensors", controller)
        write(folder / "nncf3" / f"{name}.json", controller.get_compression_state())
        found = put_out(compressed, images(folder))
        save_file({"outputs": found}, folder / "nncf3" / f"{name}.outputs.safetensors")


def compressed_by_nncf2(folder: Path, name: str, state: Any = None) -> tuple[Any, nn.Module]:
    """The controller and the network, compressed or restored.

    :param folder: with the network.
    :param name: of the sections.
    :param state: what a controller's ``get_compression_state`` returned; None compresses.
    """
    from nncf.torch import create_compressed_model, register_default_init_args

    config = {"input_info": {"sample_size": [1, 3, 8, 8]}, "compression": SECTIONS_2[name]}
    made = nncf.NNCFConfig.from_dict(config)
    loader = [(batch, torch.zeros(len(batch))) for batch in batches(folder)]
    register_default_init_args(made, loader)
    return create_compressed_model(network(folder), made, compression_state=state, dump_graphs=False)


def make_nncf2(folder: Path) -> None:
    """States of compressed networks, and their weights."""
    (folder / "nncf2").mkdir(exist_ok=True)
    for name in SECTIONS_2:
        controller, compressed = compressed_by_nncf2(folder, name)
        settle(compressed)
        write(folder / "nncf2" / f"{name}.json", controller.get_compression_state())
        weights = {key: each.clone() for key, each in compressed.state_dict().items()}
        save_file(weights, folder / "nncf2" / f"{name}.safetensors")
        found = put_out(compressed, images(folder))
        save_file({"outputs": found}, folder / "nncf2" / f"{name}.outputs.safetensors")


def make(folder: Path) -> None:
    """Write what the host for the installed NNCF writes.

    :param folder: with ``network.safetensors``.
    """
    (make_nncf3 if int(nncf.__version__.partition(".")[0]) >= 3 else make_nncf2)(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make(Path(sys.argv[1]))
