# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What knows nothing of low rank: validation, files, batches, progress, processes."""
