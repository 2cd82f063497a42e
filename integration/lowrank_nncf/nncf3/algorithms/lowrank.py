# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The section ``"lowrank"``: the core's decomposition."""

from __future__ import annotations

from torch import nn

import lowrank_plugin
from lowrank_hooks import CompressionAlgorithmRecord, CompressionContext
from lowrank_nncf.errors import ConfigurationError, as_nncf_errors
from lowrank_nncf.logs import progress
from lowrank_nncf.nncf3 import sections
from lowrank_nncf.nncf3.sections import Section
from lowrank_plugin.host import SCHEMA, Report, Settings, ValidationFunction, judge_of, needs_validation


def _check(model: nn.Module, section: Section, context: CompressionContext) -> None:
    with as_nncf_errors():
        judge_of(Settings.from_mapping(section), _judge(section, context))
    if context.dataset is None and context.example_input is None:
        msg = (
            "'lowrank' needs a dataset, or at least an example input. Pass dataset=nncf.Dataset(loader, transform), or "
            "give 'input_info' in the config and set 'norm' to 'frobenius'."
        )
        raise ConfigurationError(msg)


def _apply(model: nn.Module, section: Section, context: CompressionContext) -> tuple[nn.Module, Report]:
    with as_nncf_errors():
        compressed = lowrank_plugin.decompose(
            model,
            context.dataset,
            example_input=context.example_input,
            validation_fn=_judge(section, context),
            progress=progress,
            **section,
        )
        return compressed, lowrank_plugin.report(compressed)


def _judge(section: Section, context: CompressionContext) -> ValidationFunction | None:
    # it belongs to the whole config, where other algorithms may be what it was given for
    return context.validation_fn if needs_validation(section.get("budget")) else None


LOWRANK = CompressionAlgorithmRecord(sections.LOWRANK, _apply, SCHEMA, _check, summary="chains of smaller layers")
