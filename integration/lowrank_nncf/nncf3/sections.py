# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The sections of a config as they are once their schemas have been met: types for what the host reads in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, TypedDict

from lowrank_plugin.host import JsonObject

LOWRANK, MAGNITUDE, REGULARIZATION, QUANTIZATION = "lowrank", "magnitude_sparsity", "rb_sparsity", "quantization"
PRUNING = frozenset({MAGNITUDE, REGULARIZATION})
"""The algorithms that prune; a config names one of them at most."""

Section: TypeAlias = JsonObject
"""A section of any algorithm, checked by its schema."""

Scopes: TypeAlias = str | Sequence[str] | None


class InputInfo(TypedDict, total=False):
    """An input of the model."""

    sample_size: list[int]
    type: Literal["float", "long"]
    filler: Literal["ones", "zeros", "random"]
    keyword: str


class Scoping(TypedDict, total=False):
    """Where an algorithm puts hooks."""

    ignored_scopes: Scopes
    target_scopes: Scopes
    validate_scopes: bool


class BatchNormAdaptation(TypedDict, total=False):
    """How much data BatchNorm layers are adapted to."""

    num_bn_adaptation_samples: int


class Range(TypedDict, total=False):
    """What the ranges of activations are taken from."""

    num_init_samples: int
    type: str


class Initializer(TypedDict, total=False):
    """What an algorithm uses data for."""

    range: Range
    batchnorm_adaptation: BatchNormAdaptation


class Initialized(TypedDict, total=False):
    """A section that may ask for an initialization."""

    initializer: Initializer


class PruningParams(TypedDict, total=False):
    """How the level of pruning rises."""

    schedule: str
    sparsity_level_setting_mode: Literal["global", "local"]
    weight_importance: Literal["normed_abs", "abs"]
    sparsity_target: float
    sparsity_target_epoch: int
    sparsity_freeze_epoch: int
    update_per_optimizer_step: bool
    steps_per_epoch: int
    multistep_steps: list[int]
    multistep_sparsity_levels: list[float]
    power: float
    concave: bool


class PruningSection(Scoping, Initialized, total=False):
    """``"magnitude_sparsity"`` or ``"rb_sparsity"``."""

    sparsity_init: float
    params: PruningParams


class Quantizer(TypedDict, total=False):
    """How weights or activations are quantized."""

    mode: Literal["symmetric", "asymmetric"]
    per_channel: bool
    bits: Literal[8]


class Calibration(TypedDict, total=False):
    """What rounding may take."""

    memory_gb: float


class QuantizationSection(Scoping, Initialized, total=False):
    """``"quantization"``."""

    preset: Literal["performance", "mixed"]
    overflow_fix: Literal["enable", "first_layer_only", "disable"]
    model_type: Literal["transformer"]
    quantize_outputs: bool
    weights: Quantizer
    activations: Quantizer
    calibration: Calibration
