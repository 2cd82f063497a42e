# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The tracing of torch's functions, which ``create_compressed_model`` needs and NNCF switches on when imported."""

from __future__ import annotations

import os
import sys

from nncf import nncf_logger

VARIABLE = "NNCF_TORCH_LEGACY_TRACING"
"""Looked at by NNCF from version 2.17, once; earlier versions always trace."""


def enable_tracing() -> None:
    """Have NNCF trace torch's functions from its import on; where that is too late, say so."""
    if "nncf.torch" not in sys.modules:
        os.environ.setdefault(VARIABLE, "1")
        return
    from nncf.torch.dynamic_graph.patch_pytorch import ORIGINAL_OPERATORS

    if not ORIGINAL_OPERATORS:
        nncf_logger.warning(
            f"nncf.torch was imported without the tracing that create_compressed_model needs. Import lowrank_nncf "
            f"before it, or set the environment variable {VARIABLE} to 1."
        )
