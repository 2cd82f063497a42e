# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Compression by a config: the sections are checked, then applied one after the other."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import nncf
from torch import nn

from lowrank_hooks import CompressionContext
from lowrank_nncf.defaults import with_defaults
from lowrank_nncf.errors import ConfigurationError, ModelError, StateError
from lowrank_nncf.nncf3.algorithms import algorithms
from lowrank_nncf.nncf3.algorithms.order import check_order
from lowrank_nncf.nncf3.controller import CompressionController
from lowrank_nncf.nncf3.model import scopes
from lowrank_nncf.nncf3.model.inputs import example_input
from lowrank_nncf.nncf3.model.wrapping import bake_pruning, check_free_of_hooks
from lowrank_nncf.nncf3.schema import validated
from lowrank_nncf.nncf3.state import APPLIED, Applied, applied_to, load_from_state
from lowrank_plugin.accuracy import ValidationFunction
from lowrank_plugin.reporting import RECORD


def create_compressed_model(
    model: nn.Module,
    config: Mapping[str, Any],
    dataset: nncf.Dataset | None = None,
    validation_fn: ValidationFunction | None = None,
    *,
    compression_state: Mapping[str, Any] | None = None,
) -> tuple[CompressionController, nn.Module]:
    """Compress a model as a config says.

    The model given is never changed; without an error, a compressed copy of it is returned.

    ..  code-block:: python

            config = {"compression": [{"algorithm": "lowrank", "budget": {"macs": 0.5}}, {"algorithm": "quantization"}]}
            dataset = nncf.Dataset(loader, lambda item: item[0])
            controller, compressed = lowrank_nncf.create_compressed_model(model, config, dataset)
            print(controller.statistics().to_str())

    :param model: the model, in any mode and on any device.
    :param config: a dictionary with the key ``"compression"``: a section or a list of sections, in the order
        ``"lowrank"``, ``"magnitude_sparsity"`` or ``"rb_sparsity"``, ``"quantization"``, with algorithms of installed
        plugins where they say; optionally ``"input_info"``, ``"target_device"``, ``"ignored_scopes"`` and
        ``"target_scopes"``, as in NNCF 2, and ``"bake_pruning"``: true multiplies the masks of a model that NNCF has
        pruned into its weights first, so that what is decomposed is the pruned network.
    :param dataset: the calibration data; no labels are used.
    :param validation_fn: for the budget ``{"accuracy_drop": d}`` of ``"lowrank"``: called with a model, returns its
        quality as a number, higher is better.
    :param compression_state: what ``controller.get_compression_state()`` returned: instead of compressing, build the
        structure of that model, whose ``load_state_dict`` is to be called then, and go on with its training.
    :return: the controller and the compressed model.
    :raises nncf.ValidationError: where the config, the data or the budget cannot be used.
    :raises nncf.UnsupportedModelError: where the model already carries NNCF's hooks.
    """
    known = algorithms()
    sections = validated(config, {name: algorithm.schema for name, algorithm in known.items()})
    check_order([known[section["algorithm"]] for section in sections])
    _check_dataset(dataset)
    if not isinstance(model, nn.Module):
        msg = f"Expected the model to be a torch.nn.Module, got {type(model).__name__}."
        raise ConfigurationError(msg)
    example = example_input(config.get("input_info"), model)
    context = CompressionContext(dataset, example, config.get("target_device", "ANY"), validation_fn)
    if compression_state is not None:
        return _resumed(model, config, sections, context, compression_state)
    start = _checked_model(model, sections, config.get("bake_pruning", False))
    steps = [(known[section["algorithm"]], section) for section in sections]
    merged = [_with_global_scopes(section, config, algorithm.schema) for algorithm, section in steps]
    names = [section["algorithm"] for section in sections]
    if "lowrank" in names:
        merged[names.index("lowrank")] = with_defaults(merged[names.index("lowrank")], names)
    for (algorithm, _), section in zip(steps, merged, strict=True):
        if algorithm.check is not None:
            algorithm.check(start, section, context)

    compressed, applied = start, list(applied_to(start))
    for (algorithm, written), section in zip(steps, merged, strict=True):
        nncf.nncf_logger.info(f"Applying {algorithm.name}")
        compressed, statistics = algorithm.apply(compressed, section, context)
        applied.append(Applied(written, statistics))
    # an algorithm of a third party may have found nothing to do
    compressed = copy.deepcopy(compressed) if compressed is model else compressed
    setattr(compressed, APPLIED, applied)
    return CompressionController(compressed, config, context), compressed


def _resumed(
    model: nn.Module,
    config: Mapping[str, Any],
    sections: list[dict[str, Any]],
    context: CompressionContext,
    state: Mapping[str, Any],
) -> tuple[CompressionController, nn.Module]:
    restored = load_from_state(model, state)
    wanted, found = ([section["algorithm"] for section in each] for each in (sections, state["config"]["compression"]))
    if wanted != found:
        msg = f"The config names {', '.join(wanted)}, but the state is of a model compressed by {', '.join(found)}."
        raise StateError(msg)
    controller = CompressionController(restored, config, context)
    controller.scheduler.load_state(state["training"])
    return controller, restored


def _checked_model(model: nn.Module, sections: list[dict[str, Any]], bake: bool) -> nn.Module:
    """The model that the compression starts from: the one given, or a copy with its pruning masks baked in."""
    if hasattr(model, RECORD) and any(section["algorithm"] == "lowrank" for section in sections):
        msg = (
            "The model has already been decomposed. Start from the original model, with the budget you want in the end."
        )
        raise ModelError(msg)
    start = bake_pruning(model) if bake else model
    check_free_of_hooks(start)
    return start


def _check_dataset(dataset: object) -> None:
    if dataset is not None and not isinstance(dataset, nncf.Dataset):
        msg = (
            f"Expected the dataset to be an nncf.Dataset, got {type(dataset).__name__}. Wrap it, with a function that "
            "takes the model's input out of an item: nncf.Dataset(loader, lambda item: item[0])."
        )
        raise ConfigurationError(msg)


def _with_global_scopes(
    section: Mapping[str, Any], config: Mapping[str, Any], schema: Mapping[str, Any]
) -> dict[str, Any]:
    merged = {key: value for key, value in section.items() if key != "algorithm"}
    for key in ("ignored_scopes", "target_scopes"):
        both = scopes.as_list(config.get(key)) + scopes.as_list(section.get(key))
        if both and key in schema.get("properties", {}):
            merged[key] = both
    return merged
