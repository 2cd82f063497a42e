# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The host for NNCF 2, which has a registry of algorithms and a config of its own: ``"lowrank"`` is entered there."""

from __future__ import annotations

from lowrank_nncf.nncf2.tracing import enable_tracing


def register() -> None:
    """Make ``"lowrank"`` known to ``NNCFConfig`` and to ``nncf.torch.create_compressed_model``."""
    enable_tracing()
    # only now: these import nncf.torch, which must find tracing enabled
    from lowrank_nncf.nncf2 import algorithm, config, statistics

    config.register_section()
    statistics.register_statistics()
    algorithm.register_algorithm()
