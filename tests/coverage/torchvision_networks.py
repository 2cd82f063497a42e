# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""All networks of torchvision that compute in float, but for the two largest."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from network import Network, pictures
from torch import Tensor, nn

QUICK = {
    "squeezenet1_1",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "resnet18",
    "regnet_x_400mf",
    "lraspp_mobilenet_v3_large",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
}

_CLASSIFICATION = """
alexnet googlenet inception_v3 squeezenet1_0 squeezenet1_1
resnet18 resnet34 resnet50 resnet101 resnet152 wide_resnet50_2 wide_resnet101_2
resnext50_32x4d resnext101_32x8d resnext101_64x4d
vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn
densenet121 densenet161 densenet169 densenet201
mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3
shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l
regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf
regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf
convnext_tiny convnext_small convnext_base convnext_large
vit_b_16 vit_b_32 vit_l_16 vit_l_32 swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b maxvit_t
"""
"""Left out: regnet_y_128gf and vit_h_14, with 640 million parameters each, and networks quantized already."""

_SEGMENTATION = """
lraspp_mobilenet_v3_large deeplabv3_mobilenet_v3_large fcn_resnet50 fcn_resnet101 deeplabv3_resnet50
deeplabv3_resnet101
"""

_TWO_STAGES = {
    "num_classes": 4,
    "min_size": 96,
    "max_size": 96,
    "rpn_post_nms_top_n_test": 8,
    "box_detections_per_img": 3,
    "box_score_thresh": 0.0,
}
_ONE_STAGE = {"num_classes": 4, "min_size": 96, "max_size": 96, "detections_per_img": 3}
_RPN = ("backbone", "rpn.head")
_HEAD = ("backbone", "head")
DETECTION: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
    "fasterrcnn_resnet50_fpn": (_TWO_STAGES, _RPN),
    "fasterrcnn_resnet50_fpn_v2": (_TWO_STAGES, _RPN),
    "fasterrcnn_mobilenet_v3_large_fpn": (_TWO_STAGES, _RPN),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (_TWO_STAGES, _RPN),
    "maskrcnn_resnet50_fpn": (_TWO_STAGES, _RPN),
    "maskrcnn_resnet50_fpn_v2": (_TWO_STAGES, _RPN),
    "keypointrcnn_resnet50_fpn": ({**_TWO_STAGES, "num_classes": 2}, _RPN),
    "retinanet_resnet50_fpn": (_ONE_STAGE, _HEAD),
    "retinanet_resnet50_fpn_v2": (_ONE_STAGE, _HEAD),
    "fcos_resnet50_fpn": (_ONE_STAGE, _HEAD),
    "ssdlite320_mobilenet_v3_large": ({"num_classes": 4}, _HEAD),
    "ssd300_vgg16": ({"num_classes": 4}, _HEAD),
}
_BOXES = "compared before boxes are picked; its backbone is exported"

VIDEO = {
    "r3d_18": (8, 48),
    "mc3_18": (8, 48),
    "r2plus1d_18": (8, 48),
    "s3d": (16, 224),
    "swin3d_t": (4, 64),
    "swin3d_s": (4, 64),
    "swin3d_b": (4, 64),
    "mvit_v1_b": (16, 224),
    "mvit_v2_s": (16, 224),
}
"""Frames, and height and width."""

_SIZES = {"inception_v3": 96, "maxvit_t": 224}
_SETTINGS: dict[str, Mapping[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}
_WIDE = {"ignored_scopes": ["{re}^classifier\\.[0-6]$"]}
_WIDE_REMARK = "its classifier's layers of 4096 are left out of the run for their time"


def rows() -> Iterator[Network]:
    """Every network, those of a kind together."""
    make = functools.partial(functools.partial, _make)
    for name in _CLASSIFICATION.split():
        size, settings = _SIZES.get(name, 64), dict(_SETTINGS.get(name, {}))
        if name.startswith("vit"):
            settings["image_size"] = size
        wide = name.startswith(("vgg", "alexnet"))
        yield Network(
            "torchvision, classification",
            name,
            make(name, **settings),
            pictures(size, samples=2 if size > 100 else 4),
            section=_WIDE if wide else {},
            remark=_WIDE_REMARK if wide else "",
            quick=name in QUICK,
        )
    for name in _SEGMENTATION.split():
        made = make(name, weights_backbone=None, num_classes=5)
        yield Network("torchvision, segmentation", name, made, pictures(96), quick=name in QUICK)
    for name, (settings, heads) in DETECTION.items():
        made = make(name, weights_backbone=None, **settings)
        yield Network(
            "torchvision, detection",
            name,
            made,
            _list_of_pictures,
            heads,
            "backbone",
            remark=_BOXES,
            quick=name in QUICK,
        )
    for name, (frames, size) in VIDEO.items():
        yield Network("torchvision, video", name, make(name), _clips(frames, size))
    for name in ("raft_small", "raft_large"):
        yield Network("torchvision, optical flow", name, make(name), _two_pictures)


def _make(name: str, **settings: Any) -> nn.Module:
    from torchvision import models

    return models.get_model(name, weights=None, **settings)


def _list_of_pictures() -> list[Tensor]:
    return list(pictures(96)())


def _two_pictures() -> tuple[Tensor, Tensor]:
    # as optical flow has them: the second is the first, moved
    first = pictures(128)()
    return first, torch.roll(first, (2, 3), (-2, -1))


def _clips(frames: int, size: int) -> Callable[[], Tensor]:
    def make() -> Tensor:
        samples = 1 if size > 100 else 2
        return torch.stack([pictures(size, samples)() for _ in range(frames)], 2)

    return make
