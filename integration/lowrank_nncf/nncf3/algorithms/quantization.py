# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The section ``"quantization"``: NNCF's post-training quantization."""

from __future__ import annotations

from typing import cast

import nncf
from nncf.quantization.advanced_parameters import QuantizationMode, QuantizationParameters
from nncf.quantization.range_estimator import RangeEstimatorParameters, RangeEstimatorParametersSet
from torch import nn

import lowrank_plugin
from lowrank_hooks import CompressionAlgorithmRecord, CompressionContext
from lowrank_nncf.errors import CalibrationError, ConfigurationError, as_nncf_errors
from lowrank_nncf.logs import progress
from lowrank_nncf.nncf3 import sections
from lowrank_nncf.nncf3.algorithms import adaptation, rounding
from lowrank_nncf.nncf3.model import scopes
from lowrank_nncf.nncf3.model.inputs import items_for
from lowrank_nncf.nncf3.model.wrapping import check_can_be_wrapped, hooks
from lowrank_nncf.nncf3.schema import SCOPING
from lowrank_nncf.nncf3.sections import QuantizationSection, Section
from lowrank_nncf.nncf3.statistics import QuantizationStatistics
from lowrank_plugin.host import RECORD, Json, round_weights

_RANGES: dict[str, RangeEstimatorParameters] = {
    "min_max": RangeEstimatorParametersSet.MINMAX,
    "mean_min_max": RangeEstimatorParametersSet.MEAN_MINMAX,
    "mean_percentile": RangeEstimatorParametersSet.MEAN_QUANTILE,
}
_QUANTIZER = {
    "description": "a dictionary with the keys 'mode' and 'per_channel'",
    "type": "object",
    "properties": {
        "mode": {"description": "'symmetric' or 'asymmetric'", "enum": ["symmetric", "asymmetric"]},
        "per_channel": {"description": "true or false", "type": "boolean"},
        "bits": {"description": "8, the only width NNCF 3 quantizes activations and weights to", "const": 8},
    },
    "additionalProperties": False,
}
_SCHEMA: Json = {
    "type": "object",
    "properties": {
        "preset": {"description": "'performance' or 'mixed'", "enum": ["performance", "mixed"]},
        "overflow_fix": {
            "description": "'enable', 'first_layer_only' or 'disable'",
            "enum": ["enable", "first_layer_only", "disable"],
        },
        "model_type": {"description": "'transformer'", "enum": ["transformer"]},
        "quantize_outputs": {"description": "true or false", "type": "boolean"},
        "weights": _QUANTIZER,
        "activations": _QUANTIZER,
        "initializer": {
            "description": "a dictionary with the keys 'range' and 'batchnorm_adaptation'",
            "type": "object",
            "properties": {
                "range": {
                    "description": "a dictionary with the keys 'num_init_samples' and 'type'",
                    "type": "object",
                    "properties": {
                        "num_init_samples": {"description": "a positive integer", "type": "integer", "minimum": 1},
                        "type": {
                            "description": f"one of those NNCF 3 still has: {', '.join(map(repr, _RANGES))}",
                            "enum": list(_RANGES),
                        },
                    },
                    "additionalProperties": False,
                },
                "batchnorm_adaptation": adaptation.SCHEMA,
            },
            "additionalProperties": False,
        },
        "calibration": {
            "description": "a dictionary with the key 'memory_gb'",
            "type": "object",
            "properties": {
                "memory_gb": {
                    "description": "a number above 0, gigabytes that rounding the weights may need",
                    "type": "number",
                    "exclusiveMinimum": 0,
                }
            },
            "additionalProperties": False,
        },
        **SCOPING,
    },
    "additionalProperties": False,
    "removed": {
        "quantize_inputs": "NNCF 3 always quantizes inputs. Name the first layers in 'ignored_scopes' instead.",
        "scope_overrides": "NNCF 3 has no settings for single layers. Use 'ignored_scopes'.",
        "export_to_onnx_standard_ops": "NNCF 3 has one format only. Export what controller.strip() returns.",
        "params": "NNCF 3 quantizes at once, not in stages. Leave it out.",
        "compression_lr_multiplier": "NNCF 3 does not scale gradients. Give the parameters of the quantizers a group "
        "of their own in the optimizer.",
    },
}


def _check(model: nn.Module, section: Section, context: CompressionContext) -> None:
    section = cast("QuantizationSection", section)
    if context.dataset is None:
        msg = "'quantization' needs calibration data. Pass dataset=nncf.Dataset(loader, transform)."
        raise ConfigurationError(msg)
    if section.get("weights", {}).get("mode") == "asymmetric" and section.get("overflow_fix") != "disable":
        msg = (
            "The 'mode' of 'weights' is 'asymmetric', but NNCF halves the range of weights against overflow, which it "
            "can for symmetric ones only. Set 'overflow_fix' to 'disable', or leave the mode out."
        )
        raise ConfigurationError(msg)
    check_can_be_wrapped(model, "quantization")
    adaptation.check(model, section, context)


def _apply(model: nn.Module, section: Section, context: CompressionContext) -> tuple[nn.Module, QuantizationStatistics]:
    return _quantized(model, cast("QuantizationSection", section), context)


def _quantized(
    model: nn.Module, section: QuantizationSection, context: CompressionContext
) -> tuple[nn.Module, QuantizationStatistics]:
    check_can_be_wrapped(model, "quantization")
    samples = section.get("initializer", {}).get("range", {}).get("num_init_samples", 300)
    advanced, own = _advanced(section), rounding.applies(model, section)
    advanced.disable_bias_correction = own
    limit = rounding.memory_gb(model, section)
    model = _rotated(model, context)
    training = {name: module.training for name, module in model.named_modules()}
    try:
        quantized = nncf.quantize(
            model,
            context.dataset,
            preset=nncf.QuantizationPreset(section["preset"]) if "preset" in section else None,
            target_device=nncf.TargetDevice(context.target_device),
            subset_size=max(1, items_for(samples, context.dataset)),
            model_type=nncf.ModelType(section["model_type"]) if "model_type" in section else None,
            ignored_scope=scopes.ignored(model, section, context),
            advanced_parameters=advanced,
        )
    except StopIteration as error:
        msg = "The dataset is empty. A generator can be gone through only once; give a list or a DataLoader instead."
        raise CalibrationError(msg) from error
    if own:
        with as_nncf_errors():
            round_weights(quantized, rounding.grids(quantized), context.dataset, memory_gb=limit, progress=progress)
    adaptation.adapt(quantized, section, context)
    for name, module in quantized.named_modules():
        module.training = training.get(name, model.training)
    return quantized, QuantizationStatistics.of(quantized)


def _rotated(model: nn.Module, context: CompressionContext) -> nn.Module:
    """A copy whose chains lose less by int8; the model itself where there are none, or masks lie on their weights."""
    if not hasattr(model, RECORD) or next(hooks(model), None) is not None:
        return model
    with as_nncf_errors():
        return lowrank_plugin.rotate_chains(model, context.dataset, progress=progress)


def _advanced(section: QuantizationSection) -> nncf.AdvancedQuantizationParameters:
    """What the section says beyond the arguments of nncf.quantize."""
    advanced = nncf.AdvancedQuantizationParameters(quantize_outputs=section.get("quantize_outputs", False))
    if "overflow_fix" in section:
        advanced.overflow_fix = nncf.OverflowFix(section["overflow_fix"])
    for operand, wanted in (("weights", section.get("weights")), ("activations", section.get("activations"))):
        if wanted is not None:
            parameters = QuantizationParameters(per_channel=wanted.get("per_channel"))
            if "mode" in wanted:
                parameters.mode = QuantizationMode(wanted["mode"])
            setattr(advanced, f"{operand}_quantization_params", parameters)
    kind = section.get("initializer", {}).get("range", {}).get("type")
    if kind is not None:
        advanced.activations_range_estimator_params = _RANGES[kind]
    return advanced


QUANTIZATION = CompressionAlgorithmRecord(
    sections.QUANTIZATION,
    _apply,
    _SCHEMA,
    _check,
    after=frozenset({sections.LOWRANK}) | sections.PRUNING,
    summary="NNCF's post-training quantization",
)
