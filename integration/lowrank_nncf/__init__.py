# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Low-rank compression as a part of NNCF's compression config.

With NNCF 3 this package has functions of its own, :func:`create_compressed_model` first.

With NNCF 2, importing it is all there is to do, and it changes NNCF for the whole process:

- ``"lowrank"`` is entered into NNCF's registry of algorithms and into its config schema;
- ``nncf.NNCFConfig.validate`` is replaced by a function that first checks the section in plain words;
- ``NNCFStatistics`` in ``nncf.common.composite_compression`` by one that also holds the low-rank report;
- the environment variable ``NNCF_TORCH_LEGACY_TRACING`` is set where it is unset: import this before ``nncf.torch``.
"""

import nncf

if int(nncf.__version__.partition(".")[0]) >= 3:
    from lowrank_nncf.nncf3.algorithms import ALGORITHMS
    from lowrank_nncf.nncf3.checkpoint import load, save
    from lowrank_nncf.nncf3.compose import create_compressed_model
    from lowrank_nncf.nncf3.controller import CompressionController
    from lowrank_nncf.nncf3.state import load_from_state
    from lowrank_nncf.nncf3.statistics import PruningStatistics, QuantizationStatistics, Statistics
    from lowrank_nncf.nncf3.training import CompressionStage

    __all__ = [
        "ALGORITHMS",
        "CompressionController",
        "CompressionStage",
        "PruningStatistics",
        "QuantizationStatistics",
        "Statistics",
        "create_compressed_model",
        "load",
        "load_from_state",
        "save",
    ]
else:
    from lowrank_nncf.nncf2 import register

    register()
    # NNCF 2 keeps its algorithms in a registry of its own, so there is nothing to list beside it
    ALGORITHMS = {}
    __all__ = ["ALGORITHMS"]
