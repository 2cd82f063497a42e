# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Batch-norm adaptation: running statistics brought up to what the compressed network's layers really see."""

from __future__ import annotations

import logging

import nncf
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowrank_hooks import CompressionContext
from lowrank_nncf.errors import ConfigurationError
from lowrank_nncf.nncf3.model.inputs import items_for
from lowrank_nncf.nncf3.sections import Initialized
from lowrank_plugin.host import Json

_LOGGER = logging.getLogger(__name__)

DEFAULT_SAMPLES = 2000

SCHEMA: Json = {
    "description": "a dictionary with the key 'num_bn_adaptation_samples'",
    "type": "object",
    "properties": {
        "num_bn_adaptation_samples": {"description": "a whole number from 0", "type": "integer", "minimum": 0}
    },
    "additionalProperties": False,
}


def check(model: nn.Module, section: Initialized, context: CompressionContext) -> None:
    """Refuse an adaptation that cannot be made or would do harm.

    :param model: the model before compression.
    :param section: a section of the config.
    :param context: what the config says for all sections.
    :raises ConfigurationError: without data, and where a normalisation is folded into the layer before it.
    """
    if not _samples(section):
        return
    if context.dataset is None:
        msg = "'batchnorm_adaptation' needs calibration data. Pass dataset=nncf.Dataset(loader, transform)."
        raise ConfigurationError(msg)
    layers = {name: layer for name, layer in model.named_modules() if _adaptable(layer)}
    folded = [name for name, layer in layers.items() if _is_identity(layer)]
    if folded:
        msg = (
            f"'batchnorm_adaptation' would destroy this model: the running statistics of {folded[0]!r} "
            f"({len(folded)} of {len(layers)} such layers) are mean 0 and variance 1, so "
            "they are folded into the convolution before it or were never learned. Leave 'batchnorm_adaptation' out."
        )
        raise ConfigurationError(msg)
    if not layers:
        _LOGGER.warning("'batchnorm_adaptation' has nothing to adapt: the model has no BatchNorm layer.")


def adapt(model: nn.Module, section: Initialized, context: CompressionContext) -> None:
    """Run a compressed model on the data with only its BatchNorm layers in training mode; nothing where not asked for.

    :param model: the compressed model, changed in place.
    :param section: the section of the config, checked.
    :param context: what the config says for all sections.
    """
    samples = _samples(section)
    if samples and any(_adaptable(layer) for layer in model.modules()):
        nncf.batch_norm_adaptation(model, context.dataset, num_iterations=items_for(samples, context.dataset))


def _samples(section: Initialized) -> int:
    adaptation = section.get("initializer", {}).get("batchnorm_adaptation")
    return 0 if adaptation is None else adaptation.get("num_bn_adaptation_samples", DEFAULT_SAMPLES)


def _adaptable(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


def _is_identity(layer: nn.Module) -> bool:
    mean, variance = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    return torch.equal(mean, torch.zeros_like(mean)) and torch.equal(variance, torch.ones_like(variance))
