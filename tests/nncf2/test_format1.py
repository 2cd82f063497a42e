# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""States that version 0.1.0 wrote in NNCF 2 give the models they were written of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from data import make_format1_nncf
from data.forms import form_of_file
from data.make_format1 import images
from data.make_format1_nncf import SECTIONS_2, compressed_by_nncf2, put_out
from safetensors.torch import load_file

FOLDER = Path(make_format1_nncf.__file__).parent / "format1"
OLD = FOLDER / "nncf2"


@pytest.mark.parametrize("name", SECTIONS_2)
def test_states_and_weights_give_the_model_bit_for_bit(name: str) -> None:
    state, weights = json.loads((OLD / f"{name}.json").read_text()), load_file(OLD / f"{name}.safetensors")
    controller, model = compressed_by_nncf2(FOLDER, name, state)
    assert {key: each.shape for key, each in model.state_dict().items()} == {k: v.shape for k, v in weights.items()}
    model.load_state_dict(weights)
    lowrank = controller.get_compression_state()["builder_state"]["lowrank"]
    assert {**lowrank, "versions": None} == {**state["builder_state"]["lowrank"], "versions": None}
    assert "Low-rank decomposition" in controller.statistics().to_str()
    assert torch.equal(put_out(model, images(FOLDER)), load_file(OLD / f"{name}.outputs.safetensors")["outputs"])


def test_files_keep_their_form(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "network.safetensors", tmp_path)
    make_format1_nncf.make(tmp_path)
    for path in OLD.iterdir():
        assert form_of_file(tmp_path / "nncf2" / path.name) == form_of_file(path), path.name
