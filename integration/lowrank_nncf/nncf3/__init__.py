# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The host for NNCF 3, which has no config of its own any more: sections are read and applied here."""
