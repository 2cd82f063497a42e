# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A compressed model in one file: weights as safetensors, and the state that they belong to as its metadata."""

from __future__ import annotations

import json
from pathlib import Path

import nncf
from torch import Tensor, nn

from lowrank_nncf.errors import StateError
from lowrank_nncf.nncf3.compose import create_compressed_model
from lowrank_nncf.nncf3.controller import CompressionController
from lowrank_nncf.nncf3.state import State, check_state
from lowrank_plugin.host import read_whole, write_whole

KEY = "lowrank_nncf"
"""The key of the file's metadata that holds the state."""


def save(path: str | Path, controller: CompressionController) -> None:
    """Write a compressed model to a file: its weights, those of masks and quantizers, and its state.

    The file appears whole or not at all; an existing one is replaced. Any reader of safetensors can open it.

    >>> import tempfile, torch
    >>> section = {"algorithm": "lowrank", "ranks": {"0": 4}, "norm": "frobenius"}
    >>> config = {"input_info": {"sample_size": [1, 8]}, "compression": section}
    >>> controller, compressed = create_compressed_model(nn.Sequential(nn.Linear(8, 8)), config)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder) / "model.safetensors", controller)
    ...     _, loaded = load(Path(folder) / "model.safetensors", nn.Sequential(nn.Linear(8, 8)))
    >>> bool((loaded(torch.ones(1, 8)) == compressed(torch.ones(1, 8))).all())
    True

    :param path: of the file.
    :param controller: the controller of the model.
    :raises StateError: where the model's state_dict holds something else than tensors.
    """
    path, weights = Path(path), controller.model.state_dict()
    odd = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if odd:
        msg = f"The state_dict of the model holds {odd[0]!r}, which is no tensor. Save it with torch.save instead."
        raise StateError(msg)
    write_whole(path, weights, {KEY: json.dumps(controller.get_compression_state())})


def load(
    path: str | Path, model: nn.Module, dataset: nncf.Dataset | None = None
) -> tuple[CompressionController, nn.Module]:
    """Read a compressed model from a file that :func:`save` wrote. Nothing is solved, no data needed.

    >>> load("gone.safetensors", nn.Linear(8, 8))
    Traceback (most recent call last):
        ...
    FileNotFoundError: [Errno 2] No such file or directory: 'gone.safetensors'

    :param path: of the file.
    :param model: the network as its constructor makes it; it is not changed.
    :param dataset: data for the controller, where the config has no ``"input_info"`` and the model is to be exported.
    :return: the controller and the compressed model, in the mode and on the device of the one given.
    :raises FileNotFoundError: where there is no such file.
    :raises nncf.ValidationError: where the file is damaged, of a newer format, or of another network.
    :raises nncf.InstallationError: where a plugin that made a part of the model is not installed.
    """
    state, weights = _read(Path(path))
    controller, compressed = create_compressed_model(model, state["config"], dataset, compression_state=state)
    try:
        compressed.load_state_dict(weights)
    except RuntimeError as error:
        msg = f"The weights in {str(path)!r} do not fit the model they are loaded into: {error}"
        raise StateError(msg) from error
    return controller, compressed


def _read(path: Path) -> tuple[State, dict[str, Tensor]]:
    def refused(cause: str) -> StateError:
        return StateError(f"{str(path)!r} is damaged, or no safetensors file: {cause}")

    # one that is not there, or that may not be read, is not damaged
    path.open("rb").close()
    state, weights = read_whole(path, KEY, refused)
    if not state:
        msg = f"{str(path)!r} holds weights but no state. Expected a file that lowrank_nncf.save wrote."
        raise StateError(msg)
    return check_state(state), weights
