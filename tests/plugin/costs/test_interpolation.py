# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Interpolation between times that were measured."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lowrank_plugin.costs.interpolation import MonotoneGrid


@hypothesis_settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_interpolation_is_monotone_whatever_the_noise(data):
    axes = [
        sorted(data.draw(st.sets(st.integers(1, 64), min_size=1, max_size=5)))
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    size = [len(axis) for axis in axes]
    count = torch.Size(size).numel()
    values = torch.tensor(data.draw(st.lists(st.floats(0.01, 10), min_size=count, max_size=count))).double()
    between = MonotoneGrid.of(axes, values.reshape(size))
    low = [data.draw(st.integers(1, 80)) for _ in axes]
    high = [x + data.draw(st.integers(0, 40)) for x in low]
    assert between(high) >= between(low) - 1e-9
    assert values.min() - 1e-9 <= between(low) <= values.max() + 1e-9


def test_interpolation_keeps_what_rises_already():
    axes = [(1, 2, 5), (3, 4)]
    values = torch.tensor([[1.0, 2.0], [1.5, 4.0], [3.0, 9.0]])
    between = MonotoneGrid.of(axes, values)
    for i, j in itertools.product(range(3), range(2)):
        assert between((axes[0][i], axes[1][j])) == values[i, j]
