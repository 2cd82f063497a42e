# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What hosts, such as the one for NNCF, may use of the core beside its public functions; no other import is theirs."""

from lowrank_plugin.chains.record import RECORD
from lowrank_plugin.chains.report import Report
from lowrank_plugin.data.inputs import is_one_shot
from lowrank_plugin.flow.search import ValidationFunction, judge_of
from lowrank_plugin.int8.rounding import Grid, round_weights
from lowrank_plugin.layers.kinds import writable
from lowrank_plugin.layers.replacement import replace
from lowrank_plugin.layers.scopes import matches
from lowrank_plugin.ranks.budgets import needs_validation
from lowrank_plugin.settings import SCHEMA, Calibration, Settings, listed_scopes
from lowrank_plugin.support.files import read_whole, write_whole
from lowrank_plugin.support.messages import listed, suggestion
from lowrank_plugin.support.progress import Progress, no_progress
from lowrank_plugin.support.validation import Json, JsonObject, validate

__all__ = [
    "RECORD",
    "SCHEMA",
    "Calibration",
    "Grid",
    "Json",
    "JsonObject",
    "Progress",
    "Report",
    "Settings",
    "ValidationFunction",
    "is_one_shot",
    "judge_of",
    "listed",
    "listed_scopes",
    "matches",
    "needs_validation",
    "no_progress",
    "read_whole",
    "replace",
    "round_weights",
    "suggestion",
    "validate",
    "writable",
    "write_whole",
]
