# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Two-block variable projection, and HOOI: the iterations of the chains without CP factors."""
