# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A processor that announces more than it can do."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

VARIABLE = "ONEDNN_MAX_CPU_ISA"
WITHOUT_TILES = "AVX512_CORE_FP16"

_PROBE = """
import numpy as np, openvino as ov
from openvino import opset13 as ops
data = ops.parameter([16, 64], np.float32)
product = ops.matmul(data, ops.constant(np.ones((64, 64), np.float32)), False, False)
network = ov.compile_model(ov.Model([product], [data]), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
network(np.ones((16, 64), np.float32))
"""


@functools.cache
def avoid_missing_tiles() -> None:
    """Keep OpenVINO and PyTorch from the AMX tiles of a virtual processor that announces them and hides their size.

    On such a machine they die of an illegal instruction. One that is seen to work as it says is left alone, and so is a
    choice of the user's. Call it before the first network runs.
    """
    if VARIABLE in os.environ or not _announces_tiles():
        return
    # where OpenVINO is not installed either, PyTorch's own oneDNN might meet the same processor
    if subprocess.run([sys.executable, "-c", _PROBE], capture_output=True).returncode != 0:
        os.environ[VARIABLE] = WITHOUT_TILES


def _announces_tiles() -> bool:
    flags = Path("/proc/cpuinfo")
    return flags.exists() and "amx_tile" in flags.read_text()
