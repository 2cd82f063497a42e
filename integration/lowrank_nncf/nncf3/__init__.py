# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The host for NNCF 3, which has no config of its own any more: sections are read and applied here."""

import nncf

if int(nncf.__version__.partition(".")[0]) < 3:
    msg = f"lowrank_nncf.nncf3 is for NNCF 3, and this is NNCF {nncf.__version__}: import lowrank_nncf."
    raise ImportError(msg, name=__name__)
