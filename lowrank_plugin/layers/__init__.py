# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""From a model to its layers: modules seen as kernels, and chains put in their place."""
