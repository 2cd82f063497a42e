# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What users may write in the ``"lowrank"`` section, for editors and type checkers; the schema says what is valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from lowrank_plugin.outputs.given import LossFunction


class StabilitySection(TypedDict):
    """What users may write under ``"stability"``; see :class:`lowrank_plugin.settings.Stability`."""

    slack: float


class CalibrationSection(TypedDict, total=False):
    """What users may write under ``"calibration"``; see :class:`lowrank_plugin.settings.Calibration`."""

    samples: int
    positions: float
    memory_gb: float


class DistillationSection(TypedDict, total=False):
    """What users may write under ``"distillation"``; see :class:`lowrank_plugin.settings.Distillation`."""

    steps: int
    network_steps: int
    checkpoint: str | None


class OutputSection(TypedDict, total=False):
    """What users may write under ``"output"`` of an output, see :class:`lowrank_plugin.outputs.kinds.Output`."""

    kind: Literal["softmax", "sigmoid", "values"]
    axis: int
    probabilities: bool


class RuntimeSection(TypedDict, total=False):
    """What users may write under ``"runtime"``."""

    backend: str
    precision: str


class Section(TypedDict, total=False):
    """What users may write in the section; see :class:`lowrank_plugin.settings.Settings`."""

    budget: Mapping[str, float] | None
    ranks: Mapping[str, int | Sequence[int]]
    decomposers: Literal["auto", "int8"] | Sequence[str]
    norm: Literal["frobenius", "covariance", "two-sided"] | None
    policy: str
    rank_multiple: int
    output: (
        Literal["auto"]
        | OutputSection
        | Mapping[str, OutputSection | Literal["ignore"] | None]
        | Mapping[int, OutputSection | Literal["ignore"] | None]
        | LossFunction
    )
    repair: Literal["none", "moments", "distill"]
    runtime: RuntimeSection | None
    target_scopes: str | Sequence[str] | None
    ignored_scopes: str | Sequence[str] | None
    seed: int
    device: str | None
    on_failure: Literal["keep_dense", "raise"]
    stability: StabilitySection | Literal[False]
    calibration: CalibrationSection
    distillation: DistillationSection
