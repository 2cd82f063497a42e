# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Files of compressed models: damaged ones, those of other networks, and those that cannot be written."""

from __future__ import annotations

from pathlib import Path

import nncf
import pytest
import torch
from safetensors import safe_open
from sections import compress
from torch import nn
from untouched import assert_same_state, state_of

import lowrank_nncf


def test_damaged_files(model: nn.Module, dataset: nncf.Dataset, fresh: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    controller, _ = compress(model, dataset, "lowrank", "quantization")
    lowrank_nncf.save(path, controller)
    whole = path.read_bytes()
    before = state_of(fresh)
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(nncf.ValidationError, match=r"model.safetensors' is damaged, or no safetensors file"):
            lowrank_nncf.load(path, fresh)
        assert path.read_bytes() == whole[:length]
    path.write_bytes(whole.replace(b'{\\"format\\"', b'[\\"format\\"'))
    with pytest.raises(nncf.ValidationError, match=r"is damaged.*JSONDecodeError"):
        lowrank_nncf.load(path, fresh)
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(nncf.ValidationError, match=r"weights but no state"):
        lowrank_nncf.load(path, fresh)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() is None
    assert_same_state(fresh, before)
    with pytest.raises(FileNotFoundError):
        lowrank_nncf.load(tmp_path / "gone.safetensors", fresh)


def test_weights_of_another_network(model: nn.Module, dataset: nncf.Dataset, fresh: nn.Module, tmp_path: Path) -> None:
    controller, _ = compress(model, dataset, "lowrank")
    lowrank_nncf.save(tmp_path / "model.safetensors", controller)
    fresh.more = nn.Linear(3, 3)
    with pytest.raises(nncf.ValidationError, match=r"(?s)do not fit.*more.weight"):
        lowrank_nncf.load(tmp_path / "model.safetensors", fresh)


def test_failed_save_leaves_the_old_file(model: nn.Module, dataset: nncf.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    controller, compressed = compress(model, dataset, "lowrank")
    compressed.register_buffer("odd", torch.ones(2, dtype=torch.cdouble).to_sparse())
    with pytest.raises((ValueError, RuntimeError, KeyError, NotImplementedError)):
        lowrank_nncf.save(path, controller)
    assert path.read_bytes() == b"old"
    assert [child.name for child in tmp_path.iterdir()] == ["model.safetensors"]


def test_odd_state_dict(model: nn.Module, dataset: nncf.Dataset, tmp_path: Path) -> None:
    class Odd(type(model)):  # type: ignore[misc]
        def get_extra_state(self) -> str:
            return "text"

        def set_extra_state(self, state: str) -> None:
            """Take nothing up."""

    controller, _ = compress(Odd(), dataset, "lowrank")
    with pytest.raises(nncf.ValidationError, match=r"'_extra_state', which is no tensor.*torch.save"):
        lowrank_nncf.save(tmp_path / "model.safetensors", controller)
