# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""TensorLy's own solvers, for comparison, and its tensors as factorizations."""
