# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The built-in decomposers: pure functions on tensors, on any device."""
