# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The polynomial filter that stands for eigenvectors in HOOI."""

from __future__ import annotations

import pytest
import torch
from solvers.problems import normal

from lowrank_plugin.solvers.two_block.hooi import filtered


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_filter_improves_a_basis(dtype: torch.dtype) -> None:
    axes = torch.linalg.qr(normal(2, 12, 12)).Q
    near = torch.linalg.qr(axes[:, :, :4] + 0.1 * normal(2, 12, 4)).Q.to(dtype)
    gram = ((axes * torch.arange(12, 0, -1)) @ axes.mT).to(dtype)
    better = filtered(gram, near)
    torch.testing.assert_close(better.mT @ better, torch.eye(4, dtype=dtype).expand(2, -1, -1))

    def missed(basis: torch.Tensor) -> float:
        return float(torch.linalg.matrix_norm(axes[:, :, 4:].mT @ basis.double()).max())

    assert missed(better) < missed(near) / 2


def test_filter_leaves_a_steep_spectrum_to_eigenvectors() -> None:
    gram = torch.diag(torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0]))[None]
    near = torch.linalg.qr(torch.eye(5)[None, :, :3] + 1e-3 * normal(1, 5, 3, dtype=torch.float32)).Q
    basis = filtered(gram, near)
    torch.testing.assert_close((basis[0, :2] @ basis[0, :2].mT), torch.eye(2))
