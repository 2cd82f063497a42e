# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""From error curves and a budget to a plan: one choice a layer."""
