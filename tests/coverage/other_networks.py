# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Networks of ultralytics and of segmentation-models-pytorch."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from network import Network, pictures
from torch import nn

YOLO = ("yolov8n", "yolov8n-seg", "yolov8n-cls", "yolo11n", "yolo11n-seg", "yolo11n-cls")
SEGMENTATION = {"Unet": "resnet18", "FPN": "resnet18", "DeepLabV3Plus": "mobilenet_v2"}
"""Architectures and their encoders."""


def rows() -> Iterator[Network]:
    """Every network."""
    for name in YOLO:
        yield Network("ultralytics", name, functools.partial(_yolo, name), pictures(64))
    for architecture, encoder in SEGMENTATION.items():
        made = functools.partial(_segmentation, architecture, encoder)
        yield Network("segmentation-models-pytorch", f"{architecture} of {encoder}", made, pictures(96))


def _yolo(name: str) -> nn.Module:
    import ultralytics

    return ultralytics.YOLO(f"{name}.yaml", verbose=False).model


def _segmentation(architecture: str, encoder: str) -> nn.Module:
    import segmentation_models_pytorch as smp

    return getattr(smp, architecture)(encoder_name=encoder, encoder_weights=None, classes=4)
