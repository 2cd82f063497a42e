# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Chains as TensorLy's tensors and back."""

from __future__ import annotations

import numpy as np
import pytest
import tensorly
import torch
from solvers.problems import PROBLEMS, normal, power_law_kernel
from tensorly.backend import BackendManager

from lowrank_hooks import Factorization, Problem, Stage
from lowrank_plugin.solvers import Cpd, SpatialSvd, Tucker2
from lowrank_plugin.solvers.tensorly import from_cp_tensor, from_tucker_tensor, to_cp_tensor, to_tucker_tensor
from lowrank_plugin.solvers.tensorly.conversion import pytorch_backend
from lowrank_plugin.solvers.tensorly.partial_tucker import TensorlyPartialTucker


def test_tucker_chains_there_and_back() -> None:
    problem = PROBLEMS["covariance"]
    for rank in ((5, 3), (12, 4), (5, 8)):
        chain = Tucker2().fit(problem, rank).value
        tucker = to_tucker_tensor(chain)
        assert tucker.shape == (12, 8, 3, 3)
        dense = np.einsum("qphw,tq,sp,yh,xw->tsyx", tucker.core.numpy(), *(factor.numpy() for factor in tucker.factors))
        np.testing.assert_allclose(dense, chain.to_kernel()[0].numpy(), atol=1e-12)
        back = from_tucker_tensor([tucker], (3, 3))
        torch.testing.assert_close(back.to_kernel(), chain.to_kernel())


def test_a_tucker_tensor_needs_a_tucker_chain() -> None:
    with pytest.raises(ValueError, match="one convolution between 1x1"):
        to_tucker_tensor(SpatialSvd().fit(PROBLEMS["frobenius"], (3,)).value)


def test_cp_chains_there_and_back() -> None:
    chain = Cpd().fit(Problem(power_law_kernel(2, 6, 5, 3, 3)), (4,)).value
    assert chain is not None
    tensors = [to_cp_tensor(chain, group) for group in range(2)]
    back = from_cp_tensor(tensors, (3, 3))
    assert back.shapes == chain.shapes
    torch.testing.assert_close(back.to_kernel(), chain.to_kernel())
    with pytorch_backend():
        dense = tensorly.cp_to_tensor(tensors[1])
    torch.testing.assert_close(dense, chain.to_kernel()[1].flatten(2))


def test_weights_of_components_are_kept() -> None:
    weights, factors = normal(3), [normal(n, 3, seed=n) for n in (5, 4, 9)]
    expected = np.einsum("r,tr,sr,kr->tsk", weights.numpy(), *(factor.numpy() for factor in factors))
    kernel = from_cp_tensor([(weights, factors)], (3, 3)).to_kernel()
    np.testing.assert_allclose(kernel[0].flatten(2).numpy(), expected, atol=1e-12)


def test_a_cp_tensor_needs_a_cp_chain() -> None:
    with pytest.raises(ValueError, match="depthwise"):
        to_cp_tensor(Factorization((Stage(torch.ones(1, 4, 3, 3, 3)),)))


def test_the_backend_is_left_alone() -> None:
    before = tensorly.get_backend(), BackendManager._default_backend, BackendManager._backend
    TensorlyPartialTucker().fit(PROBLEMS["frobenius"], (3, 3))
    assert (tensorly.get_backend(), BackendManager._default_backend, BackendManager._backend) == before
