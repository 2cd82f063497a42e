# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The table of networks, by the library that they are of. Nothing is downloaded: all weights are random."""

from __future__ import annotations

import other_networks
import timm_networks
import torchvision_networks
import transformers_networks
from network import Network


def networks() -> list[Network]:
    """Every row that is planned."""
    tables = (torchvision_networks, timm_networks, transformers_networks, other_networks)
    return [network for table in tables for network in table.rows()]
