# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Low-rank compression as a part of NNCF's compression config."""

import nncf

if int(nncf.__version__.partition(".")[0]) >= 3:
    from lowrank_nncf.nncf3.checkpoint import load, save
    from lowrank_nncf.nncf3.compose import create_compressed_model
    from lowrank_nncf.nncf3.controller import CompressionController
    from lowrank_nncf.nncf3.state import load_from_state
    from lowrank_nncf.nncf3.statistics import PruningStatistics, QuantizationStatistics, Statistics
    from lowrank_nncf.nncf3.training import CompressionStage

    __all__ = [
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

    # NNCF's own functions take the section from here on, and nothing else is needed
    register()
    __all__ = []
