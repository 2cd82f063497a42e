# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Each host is tested with the version of NNCF it is for."""

from __future__ import annotations

from importlib import metadata

_NNCF3 = ["tests/nncf", "integration/lowrank_nncf/nncf3"]
_NNCF2 = ["tests/nncf2", "integration/lowrank_nncf/nncf2"]

collect_ignore = _NNCF2 if int(metadata.version("nncf").partition(".")[0]) >= 3 else _NNCF3
