# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The algorithms that a config may name; each is a function from a model to another model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

import lowrank_plugin
from lowrank_hooks import CompressionAlgorithmRecord as Algorithm
from lowrank_hooks import CompressionContext as Context
from lowrank_nncf.errors import ConfigurationError, as_nncf_errors
from lowrank_nncf.logs import nncf_logging, progress
from lowrank_nncf.nncf3.pruning import MAGNITUDE_SPARSITY, RB_SPARSITY
from lowrank_nncf.nncf3.quantization import QUANTIZATION
from lowrank_plugin.accuracy import ValidationFunction, judge_of
from lowrank_plugin.errors import PluginError
from lowrank_plugin.plugins import DISABLE_VARIABLE, OWN_DISTRIBUTION, manager
from lowrank_plugin.settings import SCHEMA, Settings


def _check_lowrank(model: nn.Module, section: Mapping[str, Any], context: Context) -> None:
    with as_nncf_errors():
        judge_of(Settings.from_mapping(section), _judge(section, context))
    if context.dataset is None and context.example_input is None:
        msg = (
            "'lowrank' needs a dataset, or at least an example input. Pass dataset=nncf.Dataset(loader, transform), or "
            "give 'input_info' in the config and set 'norm' to 'frobenius'."
        )
        raise ConfigurationError(msg)


def _apply_lowrank(model: nn.Module, section: Mapping[str, Any], context: Context) -> tuple[nn.Module, Any]:
    with as_nncf_errors(), nncf_logging():
        compressed = lowrank_plugin.decompose(
            model,
            context.dataset,
            example_input=context.example_input,
            validation_fn=_judge(section, context),
            progress=progress,
            **section,
        )
        return compressed, lowrank_plugin.report(compressed)


def _judge(section: Mapping[str, Any], context: Context) -> ValidationFunction | None:
    # it belongs to the whole config, where other algorithms may be what it was given for
    return context.validation_fn if "accuracy_drop" in (section.get("budget") or {}) else None


ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("lowrank", _apply_lowrank, SCHEMA, _check_lowrank, summary="chains of smaller layers"),
        MAGNITUDE_SPARSITY,
        RB_SPARSITY,
        QUANTIZATION,
    )
}
"""The algorithms that come with this package, by name."""


def algorithms() -> dict[str, Algorithm]:
    """All algorithms that a config may name: those of this package, and those of installed plugins.

    >>> list(algorithms())[:4]
    ['lowrank', 'magnitude_sparsity', 'rb_sparsity', 'quantization']

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
