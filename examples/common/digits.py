# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A small residual network and scikit-learn's handwritten digits, so that the demo needs no download."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

SIZE = 24


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    :param inputs: input channels.
    :param outputs: output channels.
    :param stride: of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """A residual network for 24x24 grey images and ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.body = nn.Sequential(Block(64, 64, 1), Block(64, 128, 2), Block(128, 128, 1), Block(128, 256, 2))
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 24, 24] to [B, 10]."""
        return self.head(self.body(self.stem(x)).mean(dim=(2, 3)))


def datasets(seed: int = 0) -> tuple[TensorDataset, TensorDataset]:
    """The digits, enlarged to 24x24 and scaled to mean 0 and deviation 1: for training, and a third for the test."""
    digits = load_digits()
    images = functional.interpolate(torch.from_numpy(digits.images).float()[:, None], size=SIZE, mode="bilinear")
    images = (images - images.mean()) / images.std()
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(range(len(labels)), test_size=1 / 3, random_state=seed, stratify=labels)
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def train(data: TensorDataset, epochs: int = 6, seed: int = 0, log: Callable[[str], None] = print) -> DigitsNet:
    """Train the network from scratch.

    :param data: images and labels.
    :param epochs: passes over the data.
    :param seed: of the weights, the order of the data and its shifts.
    :param log: called with a line after each epoch.
    """
    torch.manual_seed(seed)
    net = DigitsNet()
    loader = DataLoader(data, batch_size=32, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, epochs * len(loader))
    for epoch in range(epochs):
        start, right = time.perf_counter(), 0
        for images, labels in loader:
            outputs = net(_shifted(images))
            optimizer.zero_grad()
            functional.cross_entropy(outputs, labels).backward()
            optimizer.step()
            schedule.step()
            right += int((outputs.argmax(1) == labels).sum())
        seconds, seen = time.perf_counter() - start, len(loader) * 32
        log(f"  epoch {epoch + 1} of {epochs}: {100 * right / seen:5.1f} % right in training, {seconds:.1f} s")
    return net.eval()


def _shifted(images: Tensor) -> Tensor:
    """Shift a batch by up to three pixels, so that the network cannot learn positions by heart."""
    down, right = torch.randint(0, 7, (2,)).tolist()
    padded = functional.pad(images, (3, 3, 3, 3), value=float(images.min()))
    return padded[:, :, down : down + SIZE, right : right + SIZE]
