# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Compression by a config: the sections are checked, then applied one after the other."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import NamedTuple

import nncf
from torch import nn

from lowrank_hooks import CompressionAlgorithmRecord, CompressionContext
from lowrank_nncf.defaults import with_defaults
from lowrank_nncf.errors import CalibrationError, ConfigurationError, ModelError, StateError
from lowrank_nncf.logs import nncf_logging
from lowrank_nncf.nncf3.algorithms import algorithms
from lowrank_nncf.nncf3.algorithms.order import check_order
from lowrank_nncf.nncf3.controller import CompressionController
from lowrank_nncf.nncf3.model.inputs import Example, example_input
from lowrank_nncf.nncf3.model.wrapping import bake_pruning, check_free_of_hooks
from lowrank_nncf.nncf3.schema import validated
from lowrank_nncf.nncf3.sections import LOWRANK, QUANTIZATION, Section
from lowrank_nncf.nncf3.state import APPLIED, Applied, State, applied_to, check_state, restored_from
from lowrank_plugin.host import RECORD, Json, ValidationFunction, is_one_shot, listed_scopes

_LOGGER = logging.getLogger(__name__)


def create_compressed_model(
    model: nn.Module,
    config: Section,
    dataset: nncf.Dataset | None = None,
    validation_fn: ValidationFunction | None = None,
    *,
    compression_state: Mapping[str, object] | None = None,
) -> tuple[CompressionController, nn.Module]:
    """Compress a model as a config says.

    The model given is never changed; without an error, a compressed copy of it is returned.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
    >>> dataset = nncf.Dataset([torch.rand(8, 3, 12, 12) for _ in range(4)])
    >>> config = {"compression": {"algorithm": "lowrank", "ranks": {"2": 8}, "decomposers": ["spatial_svd"]}}
    >>> controller, compressed = create_compressed_model(model, config, dataset)
    >>> [tuple(stage.kernel_size) for stage in compressed[2]]
    [(3, 1), (1, 3)]
    >>> controller.statistics().lowrank.to_dict()["layers"]["2"]["rank"]
    [8]

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
        return _resumed(model, config, sections, context, check_state(compression_state))
    _check_can_be_read_again(dataset, sections, example)
    start = _checked_model(model, sections, config.get("bake_pruning", False))
    steps = _steps(sections, config, known)
    with nncf_logging():
        compressed = _applied(start, steps, context)
    return CompressionController(compressed, config, context), compressed


class _Step(NamedTuple):
    """An algorithm with its section, as the config has it and as the algorithm gets it."""

    algorithm: CompressionAlgorithmRecord
    written: Json
    section: Json


def _steps(sections: list[Json], config: Section, known: Mapping[str, CompressionAlgorithmRecord]) -> list[_Step]:
    names = [section["algorithm"] for section in sections]
    steps = []
    for written in sections:
        algorithm = known[written["algorithm"]]
        section = _with_global_scopes(written, config, algorithm.schema)
        if algorithm.name == LOWRANK:
            section = with_defaults(section, names)
        steps.append(_Step(algorithm, written, section))
    return steps


def _applied(model: nn.Module, steps: list[_Step], context: CompressionContext) -> nn.Module:
    """A compressed copy of a model, with the list of what was applied to it."""
    for algorithm, _, section in steps:
        if algorithm.check is not None:
            algorithm.check(model, section, context)
    compressed, applied = model, list(applied_to(model))
    for algorithm, written, section in steps:
        _LOGGER.info("Applying %s", algorithm.name)
        compressed, statistics = algorithm.apply(compressed, section, context)
        applied.append(Applied(written, statistics))
    # an algorithm of a third party may have found nothing to do
    compressed = copy.deepcopy(compressed) if compressed is model else compressed
    setattr(compressed, APPLIED, applied)
    return compressed


def _resumed(
    model: nn.Module,
    config: Section,
    sections: list[Json],
    context: CompressionContext,
    state: State,
) -> tuple[CompressionController, nn.Module]:
    restored = restored_from(model, state)
    wanted, found = ([section["algorithm"] for section in each] for each in (sections, state["config"]["compression"]))
    if wanted != found:
        msg = f"The config names {', '.join(wanted)}, but the state is of a model compressed by {', '.join(found)}."
        raise StateError(msg)
    controller = CompressionController(restored, config, context)
    controller.scheduler.load_state(state["training"])
    return controller, restored


def _checked_model(model: nn.Module, sections: list[Json], bake: bool) -> nn.Module:
    """The model that the compression starts from: the one given, or a copy with its pruning masks baked in."""
    if hasattr(model, RECORD) and any(section["algorithm"] == LOWRANK for section in sections):
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


def _check_can_be_read_again(dataset: nncf.Dataset | None, sections: list[Json], example: Example | None) -> None:
    """Before anything is solved: several algorithms go through the data, or take an example out of them."""
    several = len(sections) > 1 and (example is None or any(each["algorithm"] == QUANTIZATION for each in sections))
    if several and is_one_shot(dataset):
        msg = (
            "The dataset is needed more than once. A generator can be gone through only once; give a list or a "
            "DataLoader instead."
        )
        raise CalibrationError(msg)


def _with_global_scopes(section: Section, config: Section, schema: Section) -> Json:
    merged = {key: value for key, value in section.items() if key != "algorithm"}
    for key in ("ignored_scopes", "target_scopes"):
        both = listed_scopes(config.get(key)) + listed_scopes(section.get(key))
        if both and key in schema.get("properties", {}):
            merged[key] = list(both)
    return merged
