# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The sections ``"magnitude_sparsity"`` and ``"rb_sparsity"``: unstructured pruning by nncf.prune."""

from __future__ import annotations

import copy
from typing import cast

import nncf
from nncf.torch.function_hook import get_hook_storage
from torch import nn

from lowrank_hooks import CompressionAlgorithmRecord, CompressionContext
from lowrank_nncf.errors import ConfigurationError
from lowrank_nncf.nncf3.algorithms import adaptation, schedules
from lowrank_nncf.nncf3.model import scopes
from lowrank_nncf.nncf3.model.inputs import example_of
from lowrank_nncf.nncf3.model.wrapping import check_can_be_wrapped
from lowrank_nncf.nncf3.schema import SCOPING
from lowrank_nncf.nncf3.sections import (
    LOWRANK,
    MAGNITUDE,
    QUANTIZATION,
    REGULARIZATION,
    PruningSection,
    Section,
)
from lowrank_nncf.nncf3.statistics import PruningStatistics
from lowrank_plugin.host import Json

_NO_MULTIPLIER = {
    "compression_lr_multiplier": "NNCF 3 does not scale gradients. Give the parameters of the masks a group of their "
    "own in the optimizer."
}
_INITIALIZER = {
    "description": "a dictionary with the key 'batchnorm_adaptation'",
    "type": "object",
    "properties": {"batchnorm_adaptation": adaptation.SCHEMA},
    "additionalProperties": False,
}


def _schema(modes: list[str], **params: Json) -> Json:
    mode = {"description": " or ".join(map(repr, modes)) + ", which NNCF 3 has for this algorithm", "enum": modes}
    return {
        "type": "object",
        "properties": {
            "sparsity_init": schedules.LEVEL,
            "initializer": _INITIALIZER,
            "params": {
                "description": "a dictionary that says how the sparsity rises",
                "type": "object",
                "properties": {"sparsity_level_setting_mode": mode, **schedules.PARAMETERS, **params},
                "additionalProperties": False,
            },
            **SCOPING,
        },
        "additionalProperties": False,
        "removed": _NO_MULTIPLIER,
    }


def schedule_of(algorithm: str, section: PruningSection) -> schedules.Schedule:
    """How the sparsity of a section rises during training.

    :param algorithm: one of the two.
    :param section: its section.
    """
    return schedules.schedule_of(section, "polynomial" if algorithm == MAGNITUDE else "exponential")


def mode_of(section: PruningSection) -> nncf.PruneMode:
    """Whether the weights of a magnitude section compete within their layer or with all others.

    >>> mode_of({"params": {"sparsity_level_setting_mode": "local"}}).name
    'UNSTRUCTURED_MAGNITUDE_LOCAL'

    :param section: the section.
    """
    local = section.get("params", {}).get("sparsity_level_setting_mode") == "local"
    modes = nncf.PruneMode
    return modes.UNSTRUCTURED_MAGNITUDE_LOCAL if local else modes.UNSTRUCTURED_MAGNITUDE_GLOBAL


def _check_magnitude(model: nn.Module, section: Section, context: CompressionContext) -> None:
    pruning = cast("PruningSection", section)
    mode = mode_of(pruning)
    absolute = pruning.get("params", {}).get("weight_importance", "normed_abs") == "abs"
    if absolute and mode is nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL:
        msg = (
            "'weight_importance' is 'abs', but NNCF 3 compares the weights of several layers by 'normed_abs' only, "
            "relative to the norm of their layer. Leave it out, or set 'sparsity_level_setting_mode' to 'local'."
        )
        raise ConfigurationError(msg)
    _check(MAGNITUDE, model, pruning, context)


def _check_regularization(model: nn.Module, section: Section, context: CompressionContext) -> None:
    _check(REGULARIZATION, model, cast("PruningSection", section), context)


def _check(algorithm: str, model: nn.Module, section: PruningSection, context: CompressionContext) -> None:
    schedule_of(algorithm, section)
    check_can_be_wrapped(model, algorithm)
    example_of(context)
    adaptation.check(model, section, context)


def _apply_magnitude(
    model: nn.Module, section: Section, context: CompressionContext
) -> tuple[nn.Module, PruningStatistics]:
    pruning = cast("PruningSection", section)
    level = schedule_of(MAGNITUDE, pruning).initial
    return _prune(MAGNITUDE, model, pruning, context, mode_of(pruning), level)


def _apply_regularization(
    model: nn.Module, section: Section, context: CompressionContext
) -> tuple[nn.Module, PruningStatistics]:
    mode = nncf.PruneMode.UNSTRUCTURED_REGULARIZATION_BASED
    return _prune(REGULARIZATION, model, cast("PruningSection", section), context, mode, None)


def _prune(
    algorithm: str,
    model: nn.Module,
    section: PruningSection,
    context: CompressionContext,
    mode: nncf.PruneMode,
    level: float | None,
) -> tuple[nn.Module, PruningStatistics]:
    check_can_be_wrapped(model, algorithm)
    ignored = scopes.ignored(model, section, context)
    # unlike nncf.quantize, nncf.prune changes the model it is given
    pruned = copy.deepcopy(model)
    try:
        pruned = nncf.prune(pruned, mode, ratio=level, ignored_scope=ignored, examples_inputs=example_of(context))
    except nncf.InternalError as error:
        msg = f"{algorithm!r} found no weights to prune: {error}. Check 'ignored_scopes' and 'target_scopes'."
        raise ConfigurationError(msg) from error
    statistics = PruningStatistics.of(pruned, algorithm)
    if not statistics.tensors:
        msg = f"{algorithm!r} found no weights to prune. Check 'ignored_scopes' and 'target_scopes'."
        raise ConfigurationError(msg)
    # NNCF leaves masks in training mode, where learned ones draw random bits, also in a model that is not
    get_hook_storage(pruned).train(model.training)
    adaptation.adapt(pruned, section, context)
    return pruned, statistics


_AFTER, _BEFORE = frozenset({LOWRANK}), frozenset({QUANTIZATION})

MAGNITUDE_SPARSITY = CompressionAlgorithmRecord(
    MAGNITUDE,
    _apply_magnitude,
    _schema(
        ["global", "local"],
        weight_importance={"description": "'normed_abs' or 'abs'", "enum": ["normed_abs", "abs"]},
    ),
    _check_magnitude,
    after=_AFTER,
    before=_BEFORE,
    summary="small weights become zero",
)
RB_SPARSITY = CompressionAlgorithmRecord(
    REGULARIZATION,
    _apply_regularization,
    _schema(["global"]),
    _check_regularization,
    after=_AFTER,
    before=_BEFORE,
    summary="weights become zero as training learns which ones",
)
