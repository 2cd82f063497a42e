# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The kernels that the solver benchmarks run on: ResNet-18's 3x3 convolutions with their input covariances."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
"""Where a folder with ``reference.py``, the trained ResNet-18 and images is looked for by default."""

SHAPES = {
    f"layer{stage}.{block}.conv{conv}": (64 << (stage - 1), 64 << (stage - 1 - (stage > 1 and block + conv == 1)))
    for stage in (1, 2, 3, 4)
    for block in (0, 1)
    for conv in (1, 2)
}
"""Output and input channels of the 16 layers."""


@dataclass(frozen=True)
class Layer:
    """One layer.

    :param kernel: float32 [T, S, 3, 3].
    :param covariance: centred, float32 [S*9, S*9].
    :param mean: of the input patches, float32 [S*9].
    """

    name: str
    kernel: Tensor
    covariance: Tensor
    mean: Tensor


def load(data: Path, images: int = 256) -> tuple[str, list[Layer]]:
    """The trained kernels with covariances from real images, or made-up ones of the same shapes.

    :param data: a folder with ``reference.py`` (functions ``resnet18`` and ``imagenet``); it may be missing.
    :param images: calibration images.
    :return: what they are, and the layers.
    """
    if (data / "reference.py").exists():
        return f"trained ResNet-18, covariances from {images} images", _trained(data, images)
    return "power-law kernels and covariances (no data folder)", [
        made_up(name, *shape, seed) for seed, (name, shape) in enumerate(SHAPES.items())
    ]


@torch.no_grad()
def _trained(data: Path, images: int) -> list[Layer]:
    reference = load_module(data / "reference.py")
    model: nn.Module = reference.resnet18()
    convolutions = {name: module for name, module in model.named_modules() if name in SHAPES}
    sums: dict[str, list[Any]] = {name: [0, 0.0, 0.0] for name in convolutions}
    generator = torch.Generator().manual_seed(0)

    def watch(name: str, module: nn.Conv2d, batch: Tensor) -> None:
        patches = functional.unfold(batch, 3, padding=module.padding, stride=module.stride)
        patches = patches.transpose(1, 2).flatten(0, 1)
        wanted = max(1, 12 * patches.shape[1] * len(batch) // images)
        if len(patches) > wanted:
            patches = patches[torch.randperm(len(patches), generator=generator)[:wanted]]
        entry = sums[name]
        entry[0] += len(patches)
        entry[1] = entry[1] + patches.sum(dim=0).double()
        entry[2] = entry[2] + patches.T @ patches

    handles = [
        module.register_forward_hook(lambda module, inputs, _, name=name: watch(name, module, inputs[0]))
        for name, module in convolutions.items()
    ]
    pictures, _ = reference.imagenet("calibration")
    for begin in range(0, images, 16):
        model(reference.normalize(pictures[begin : min(begin + 16, images)]))
    for handle in handles:
        handle.remove()
    layers = []
    for name, (count, total, products) in sums.items():
        mean = (total / count).float()
        covariance = products / count - mean[:, None] * mean
        layers.append(Layer(name, convolutions[name].weight.detach().clone(), covariance, mean))
    return layers


def made_up(name: str, outputs: int, inputs: int, seed: int) -> Layer:
    """A kernel whose modes decay like 1/sqrt(i), inputs correlated over channels and neighbouring taps."""
    generator = torch.Generator().manual_seed(seed)

    def mixing(n: int, decay: float) -> Tensor:
        basis = torch.linalg.qr(torch.randn(n, n, generator=generator)).Q
        return basis * torch.arange(1, n + 1).float() ** -decay @ basis.T

    kernel = torch.randn(outputs, inputs, 9, generator=generator)
    kernel = torch.einsum("tsk,at,bs,ck->abc", kernel, mixing(outputs, 0.5), mixing(inputs, 0.5), mixing(9, 0.5))
    axis = torch.arange(3).float()
    near = torch.exp(-0.5 * (axis[:, None] - axis).abs())
    channels = mixing(inputs, 1.0)
    covariance = torch.kron(channels @ channels.T, torch.kron(near, near))
    # Real covariances are no Kronecker product; a random part keeps the solvers from profiting from one.
    noise = torch.randn(inputs * 9, inputs * 9, generator=generator) / (inputs * 9) ** 0.5
    factor = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(inputs * 9))
    covariance = factor @ (torch.eye(inputs * 9) + noise @ noise.T) @ factor.T
    return Layer(name, kernel.reshape(outputs, inputs, 3, 3), covariance, torch.zeros(inputs * 9))


def load_module(path: Path) -> ModuleType:
    """Import a Python file that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        msg = f"{path} is not a Python module."
        raise ImportError(msg)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
