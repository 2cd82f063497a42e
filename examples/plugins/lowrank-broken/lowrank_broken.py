# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Fails at import."""

import a_package_that_is_not_installed  # noqa: F401
