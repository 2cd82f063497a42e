# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The conformance kit, run on the tensor train."""

from lowrank_tensor_train import TensorTrain

from lowrank_hooks.testing import DecomposerConformance


class TestTensorTrain(DecomposerConformance):
    """Nothing to set but the decomposer."""

    decomposer = TensorTrain()
