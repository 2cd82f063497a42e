# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The training examples on a tiny network: accuracy comes back, gradients stay finite, files are written."""

from __future__ import annotations

import json
import os

# NNCF reads it on import; tests must not report usage.
os.environ.setdefault("NNCF_CI", "1")

import cpd_training
import fine_tuning
import pytest
import torch
from common.training import Task, accuracy, train
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class TinyNet(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 8, 8] to [B, 10]."""
        return self.head(torch.relu(self.conv(torch.relu(self.stem(x)))).amax(dim=(2, 3)))


@pytest.fixture(scope="module")
def task() -> Task:
    """Handwritten digits of 8x8 pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = torch.from_numpy(digits.images).float()[:, None] / 8 - 1, torch.from_numpy(digits.target).long()
    training, test = TensorDataset(images[:1200], labels[:1200]), TensorDataset(images[1200:], labels[1200:])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TinyNet()
    train(model, training, epochs=8, rate=0.05)
    return Task("tiny digits", model, training, test)


def test_fine_tuning_recovers_accuracy(task: Task) -> None:
    rows, course = fine_tuning.fine_tuned(task, budget=0.4, epochs=3, rate=0.02)
    top1 = {row["version"]: row["top1"] for row in rows}
    assert top1["original"] > 85
    lost = top1["original"] - top1["low-rank + int8"]
    assert lost > 2
    assert top1["fine-tuned"] > top1["low-rank + int8"] + lost / 3
    assert course.finite


def test_cpd_networks_train(task: Task) -> None:
    runs = cpd_training.compared(task, {"conv": 24}, epochs=2, rate=0.01)
    stable = runs["stable"]
    assert torch.tensor(stable["losses"] + stable["gradients"]).isfinite().all()
    assert stable["after"] >= stable["before"] - 1
    assert stable["after"] > accuracy(task.model, task.test) - 3


def test_figure_and_files(task: Task, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cpd_training, "digits_task", lambda: task)
    files = [tmp_path / "runs.json", tmp_path / "runs.png"]
    cpd_training.main(["--layers", "conv", "--rank", "8", "--json", str(files[0]), "--figure", str(files[1])])
    assert set(json.loads(files[0].read_text())["runs"]) == {"plain", "stable"}
    assert files[1].read_bytes().startswith(b"\x89PNG")
