# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The algorithms that a config may name, each a small function from a model to another model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import nncf
from torch import nn

import lowrank_plugin
from lowrank_hooks import CompressionAlgorithmRecord as Algorithm
from lowrank_hooks import CompressionContext as Context
from lowrank_nncf.errors import CalibrationError, ConfigurationError, as_nncf_errors
from lowrank_nncf.logs import nncf_logging, progress
from lowrank_nncf.nncf3 import scopes
from lowrank_nncf.nncf3.schema import SCOPES
from lowrank_nncf.nncf3.statistics import QuantizationStatistics
from lowrank_plugin.errors import PluginError
from lowrank_plugin.plugins import DISABLE_VARIABLE, OWN_DISTRIBUTION, manager
from lowrank_plugin.settings import SCHEMA, Settings


def _check_lowrank(model: nn.Module, section: Mapping[str, Any], context: Context) -> None:
    with as_nncf_errors():
        Settings.from_mapping(section)
    if context.dataset is None and context.example_input is None:
        msg = (
            "'lowrank' needs a dataset, or at least an example input. Pass dataset=nncf.Dataset(loader, transform), or "
            "give 'input_info' in the config and set 'norm' to 'frobenius'."
        )
        raise ConfigurationError(msg)


def _apply_lowrank(model: nn.Module, section: Mapping[str, Any], context: Context) -> tuple[nn.Module, Any]:
    with as_nncf_errors(), nncf_logging():
        compressed = lowrank_plugin.decompose(
            model, context.dataset, example_input=context.example_input, progress=progress, **section
        )
        return compressed, lowrank_plugin.report(compressed)


def _check_quantization(model: nn.Module, section: Mapping[str, Any], context: Context) -> None:
    if context.dataset is None:
        msg = "'quantization' needs calibration data. Pass dataset=nncf.Dataset(loader, transform)."
        raise ConfigurationError(msg)
    if type(model).forward is nn.Sequential.forward:
        msg = (
            "NNCF 3 cannot quantize a model that is itself an nn.Sequential: it stores the quantizers as one more "
            "child, which the nn.Sequential would call. Put it into a module of your own whose forward calls it."
        )
        raise ConfigurationError(msg)


def _apply_quantization(model: nn.Module, section: Mapping[str, Any], context: Context) -> tuple[nn.Module, Any]:
    dataset = context.dataset
    if dataset is None:
        msg = "'quantization' needs calibration data."
        raise ConfigurationError(msg)
    advanced = (
        nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix(section["overflow_fix"]))
        if "overflow_fix" in section
        else None
    )
    training = {name: module.training for name, module in model.named_modules()}
    try:
        quantized = nncf.quantize(
            model,
            dataset,
            preset=nncf.QuantizationPreset(section["preset"]) if "preset" in section else None,
            target_device=nncf.TargetDevice(context.target_device),
            subset_size=_subset_size(section, dataset),
            model_type=nncf.ModelType(section["model_type"]) if "model_type" in section else None,
            ignored_scope=_ignored_scope(model, section, context),
            advanced_parameters=advanced,
        )
    except StopIteration as error:
        msg = "The dataset is empty. A generator can be gone through only once; give a list or a DataLoader instead."
        raise CalibrationError(msg) from error
    for name, module in quantized.named_modules():
        module.training = training.get(name, model.training)
    return quantized, QuantizationStatistics.of(quantized)


def _subset_size(section: Mapping[str, Any], dataset: nncf.Dataset) -> int:
    """The items of the data set that hold as many samples as the section asks for."""
    samples = section.get("initializer", {}).get("range", {}).get("num_init_samples", 300)
    items = math.ceil(samples / (dataset.get_batch_size() or 1))
    return min(items, dataset.get_length() or items)


def _ignored_scope(model: nn.Module, section: Mapping[str, Any], context: Context) -> nncf.IgnoredScope | None:
    ignored, targets = (scopes.as_list(section.get(key)) for key in ("ignored_scopes", "target_scopes"))
    if not ignored and not targets:
        return None
    example = context.example_input
    if example is None and context.dataset is not None:
        example = next(iter(context.dataset.get_inference_data()))
    graph = nncf.build_graph(model, example_input=example)
    operations = [node.node_name for node in graph.get_all_nodes() if "/" in node.node_name]
    names = scopes.select(ignored, operations, "ignored_scopes")
    if targets:
        names |= set(operations) - scopes.select(targets, operations, "target_scopes")
    return nncf.IgnoredScope(names=sorted(names)) if names else None


_QUANTIZATION: dict[str, Any] = {
    "type": "object",
    "properties": {
        "preset": {"description": "'performance' or 'mixed'", "enum": ["performance", "mixed"]},
        "overflow_fix": {
            "description": "'enable', 'first_layer_only' or 'disable'",
            "enum": ["enable", "first_layer_only", "disable"],
        },
        "model_type": {"description": "'transformer'", "enum": ["transformer"]},
        "initializer": {
            "description": "a dictionary with the key 'range'",
            "type": "object",
            "properties": {
                "range": {
                    "description": "a dictionary with the key 'num_init_samples'",
                    "type": "object",
                    "properties": {
                        "num_init_samples": {"description": "a positive integer", "type": "integer", "minimum": 1}
                    },
                    "additionalProperties": False,
                }
            },
            "additionalProperties": False,
        },
        "ignored_scopes": SCOPES,
        "target_scopes": SCOPES,
    },
    "additionalProperties": False,
}

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("lowrank", _apply_lowrank, SCHEMA, _check_lowrank, summary="chains of smaller layers"),
        Algorithm(
            "quantization",
            _apply_quantization,
            _QUANTIZATION,
            _check_quantization,
            after=frozenset({"lowrank"}),
            summary="NNCF's post-training quantization",
        ),
    )
}
"""The algorithms that come with this package, by name."""


def algorithms() -> dict[str, Algorithm]:
    """All algorithms that a config may name: those of this package, and those of installed plugins.

    >>> list(algorithms())[:2]
    ['lowrank', 'quantization']

    :return: the algorithms by name.
    :raises PluginError: where a plugin offers a name that is taken.
    """
    found = dict(ALGORITHMS)
    for name, entry in manager().registered("compression algorithm").items():
        if name in found:
            msg = (
                f"Two plugins offer a compression algorithm named {name!r}: {OWN_DISTRIBUTION} and "
                f"{entry.distribution}. Uninstall the second, or name it in the environment variable "
                f"{DISABLE_VARIABLE}."
            )
            raise PluginError(msg)
        found[name] = entry.record
    return found
