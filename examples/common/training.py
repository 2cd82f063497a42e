# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A training loop for compressed networks, and two tasks to train on."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


@dataclass(frozen=True)
class Task:
    """A trained network with labelled images.

    :param name: for titles.
    :param model: in eval mode.
    :param training: images and classes to train on; their images also calibrate.
    :param test: images and classes to measure on.
    """

    name: str
    model: nn.Module
    training: TensorDataset
    test: TensorDataset


@dataclass
class Course:
    """How a training went, one value for each step.

    :param losses: cross-entropy in nats.
    :param gradients: norms of the gradient of all parameters.
    """

    losses: list[float] = field(default_factory=list)
    gradients: list[float] = field(default_factory=list)

    @property
    def finite(self) -> bool:
        """Whether no loss and no gradient was infinite or NaN."""
        return all(map(math.isfinite, self.losses + self.gradients))


def train(
    model: nn.Module,
    data: TensorDataset,
    epochs: int,
    rate: float,
    batch: int = 32,
    seed: int = 0,
    controller: Any = None,
) -> Course:
    """Train all parameters of a model, in place, by SGD with momentum and a learning rate that falls to zero.

    :param model: any model; quantizers learn their ranges like other parameters.
    :param data: images and classes.
    :param epochs: passes over the data.
    :param rate: the learning rate at the start.
    :param batch: images a step.
    :param seed: of the order of the images.
    :param controller: of a model that NNCF compressed: its loss is added and its schedule followed.
    :return: how it went; training ends where the loss is no longer finite.
    """
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, batch_size=batch, shuffle=True, drop_last=True, generator=order)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, rate, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    course = Course()
    model.train()
    for _ in range(epochs):
        if controller is not None:
            controller.scheduler.epoch_step()
        for images, labels in loader:
            if controller is not None:
                controller.scheduler.step()
            loss = functional.cross_entropy(model(images), labels)
            course.losses.append(float(loss.detach()))
            optimizer.zero_grad()
            (loss if controller is None else loss + controller.loss()).backward()
            course.gradients.append(float(nn.utils.clip_grad_norm_(parameters, math.inf)))
            if not course.finite:
                return course
            optimizer.step()
            schedule.step()
    model.eval()
    return course


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Return the share of images, in per cent, whose class a model finds in eval mode.

    :param model: any model; left in eval mode.
    :param data: images and classes.
    """
    images, labels = data.tensors
    outputs = torch.cat([model.eval()(part) for part in images.split(100)])
    return float((outputs.argmax(1) == labels).float().mean() * 100)


def digits_task(epochs: int = 6) -> Task:
    """The handwritten digits of scikit-learn and a network trained on them here.

    :param epochs: passes over the training images.
    """
    from common import digits

    training, test = digits.datasets()
    return Task("digits", digits.train(training, epochs), training, test)


def cifar_task(data: Path, samples: int = 4000) -> Task:
    """A trained ResNet-20 and images of CIFAR-10.

    :param data: a folder with a ``reference.py`` that loads them, as for ``benchmarks/accuracy.py``.
    :param samples: training images used, and at most as many for the test.
    :raises SystemExit: where the folder has no such file.
    """
    path = data / "reference.py"
    spec = importlib.util.spec_from_file_location("reference", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise SystemExit(f"There is no file {str(path)!r}. Leave --data out to use the handwritten digits.")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    training, test = (
        TensorDataset(reference.normalize(images[:samples]), torch.from_numpy(labels[:samples]).long())
        for images, labels in map(reference.cifar10, ("calibration", "validation"))
    )
    return Task("ResNet-20 on CIFAR-10", reference.resnet20(), training, test)
