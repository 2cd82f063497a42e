# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""One network of each of 60 families of timm, the smallest or nearly so."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from network import Network, pictures
from torch import nn

_ANY_SIZE = """
resnet14t resnetv2_18 res2net50_14w_8s resnest14d skresnet18 legacy_seresnet18 seresnext26t_32x4d
convnext_atto convnextv2_atto edgenext_xx_small ghostnet_050 mobileone_s0 repvit_m0_9 rexnet_100 regnetz_005
hrnet_w18_small dla46_c dpn48b selecsls42 ese_vovnet19b_slim cspresnet50 densenet121 nf_regnet_b0 eca_nfnet_l0
lcnet_035 tinynet_e hardcorenas_a mnasnet_small efficientnet_lite0 mobilenetv4_conv_small hgnetv2_b0 starnet_s1
mambaout_femto inception_next_atto convmixer_768_32 poolformer_s12 caformer_s18 mobilevit_xxs mobilevitv2_050
efficientvit_b0 pvt_v2_b0 fastvit_t8 xception41 repvgg_a0
"""
SIZES = {
    **dict.fromkeys(_ANY_SIZE.split(), 64),
    # these are made for one size
    "vit_tiny_patch16_224": 224,
    "deit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "levit_128s": 224,
    "mixer_s32_224": 224,
    "resmlp_12_224": 224,
    "gmlp_ti16_224": 224,
    "pit_ti_224": 224,
    "xcit_nano_12_p16_224": 224,
    "coat_lite_tiny": 224,
    "crossvit_tiny_240": 240,
    "convit_tiny": 224,
    "visformer_tiny": 224,
    "tiny_vit_5m_224": 224,
    "efficientformerv2_s0": 224,
    "eva02_tiny_patch14_224": 224,
}
"""Height and width of the input."""


def rows() -> Iterator[Network]:
    """Every network."""
    for name, size in SIZES.items():
        made = functools.partial(_make, name)
        yield Network("timm", name, made, pictures(size, samples=2 if size > 100 else 4))


def _make(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=10)
