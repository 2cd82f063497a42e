# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""TensorLy's own solvers, to compare with, and chains as TensorLy's tensors and back.

>>> import torch
>>> from lowrank_hooks import Problem
>>> from lowrank_plugin.solvers import Cpd
>>> solution = Cpd().fit(Problem(torch.ones(1, 6, 4, 3, 3)), (1,))
>>> to_cp_tensor(solution.value).rank
1
"""

from lowrank_plugin.solvers.tensorly.conversion import (
    from_cp_tensor,
    from_tucker_tensor,
    to_cp_tensor,
    to_tucker_tensor,
)

__all__ = ["from_cp_tensor", "from_tucker_tensor", "to_cp_tensor", "to_tucker_tensor"]
