# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What a chain costs: counted from its sizes, or measured where it will run."""
