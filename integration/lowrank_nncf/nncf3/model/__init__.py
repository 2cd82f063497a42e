# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A model as NNCF 3 sees it: what it is run on, the names of its operations, and the hooks in it."""
