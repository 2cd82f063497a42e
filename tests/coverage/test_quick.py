# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A few of the networks that ``make coverage`` looks at."""

from __future__ import annotations

import pytest

pytest.importorskip("torchvision", reason="the networks are those of torchvision")

import torchvision_networks
from row import row_of

QUICK = {network.name: network for network in torchvision_networks.rows() if network.quick}


@pytest.mark.parametrize("name", QUICK)
def test_all_that_is_told_of_a_network_is_true(name: str) -> None:
    row = row_of(QUICK[name], widest=200)

    assert not row.wrong
    assert row.layers and row.restored and row.untouched
    assert row.full_rank is not None and row.exported is not None
