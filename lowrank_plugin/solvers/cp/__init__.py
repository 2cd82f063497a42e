# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""CP decompositions in a norm, with bounded sensitivity."""
