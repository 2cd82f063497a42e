# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Files of compressed models that version 0.1.0 wrote give the models they were written of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from data import make_format1_nncf
from data.forms import form_of_file
from data.make_format1 import images, network
from data.make_format1_nncf import SECTIONS, put_out
from safetensors import safe_open
from safetensors.torch import load_file

import lowrank_nncf

FOLDER = Path(make_format1_nncf.__file__).parent / "format1"
OLD = FOLDER / "nncf3"


def without_versions(state: dict[str, Any]) -> dict[str, Any]:
    lowrank = state["lowrank"] and {**state["lowrank"], "versions": None}
    return {**state, "versions": None, "lowrank": lowrank}


@pytest.mark.parametrize("name", SECTIONS)
def test_files_give_the_model_bit_for_bit(name: str, tmp_path: Path) -> None:
    controller, model = lowrank_nncf.load(OLD / f"{name}.safetensors", network(FOLDER))
    stored, found = load_file(OLD / f"{name}.safetensors"), model.state_dict()
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in stored.items())
    state = json.loads((OLD / f"{name}.json").read_text())
    with safe_open(OLD / f"{name}.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["lowrank_nncf"]) == state
    assert without_versions(controller.get_compression_state()) == without_versions(state)
    # written again it is the same file but for versions
    lowrank_nncf.save(tmp_path / "again.safetensors", controller)
    again = load_file(tmp_path / "again.safetensors")
    assert all(torch.equal(again[key], value) for key, value in stored.items())
    assert "Low-rank decomposition" in controller.statistics().to_str()
    assert torch.equal(put_out(model, images(FOLDER)), load_file(OLD / f"{name}.outputs.safetensors")["outputs"])


@pytest.mark.parametrize("name", SECTIONS)
def test_states_and_weights_give_the_model_bit_for_bit(name: str) -> None:
    model = lowrank_nncf.load_from_state(network(FOLDER), json.loads((OLD / f"{name}.json").read_text()))
    model.load_state_dict(load_file(OLD / f"{name}.safetensors"))
    assert torch.equal(put_out(model, images(FOLDER)), load_file(OLD / f"{name}.outputs.safetensors")["outputs"])


@pytest.mark.parametrize("name", ["pruned", "learned"])
def test_schedules_go_on_where_they_were(name: str) -> None:
    controller, _ = lowrank_nncf.load(OLD / f"{name}.safetensors", network(FOLDER))
    assert controller.scheduler.current_epoch == 1
    controller.scheduler.epoch_step()
    assert controller.scheduler.current_epoch == 2


def test_files_keep_their_form(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "network.safetensors", tmp_path)
    make_format1_nncf.make(tmp_path)
    for path in OLD.iterdir():
        assert form_of_file(tmp_path / "nncf3" / path.name) == form_of_file(path), path.name
