# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What all tests share."""

from __future__ import annotations

import torch
from common.processor import avoid_missing_tiles

# small matrices: a second thread costs more than it brings, and results must not depend on how many there are
torch.set_num_threads(1)

# also for the processes that tests start
avoid_missing_tiles()
