# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Each error of the core is one of NNCF as well, and keeps what it carries."""

from __future__ import annotations

import nncf
import pytest
from torch import Tensor, nn

import lowrank_nncf
from lowrank_nncf.errors import as_nncf_errors
from lowrank_plugin import errors

NNCF_ERRORS = (nncf.ValidationError, nncf.InstallationError, nncf.UnsupportedModelError)
CORE_ERRORS = [kind for kind in errors.LowRankError.__subclasses__() if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", CORE_ERRORS, ids=lambda kind: kind.__name__)
def test_each_is_an_error_of_nncf(kind: type[errors.LowRankError]) -> None:
    with pytest.raises(NNCF_ERRORS, match=r"^What happened\.$") as caught, as_nncf_errors():
        raise kind("What happened.")
    assert isinstance(caught.value, kind)
    assert type(caught.value.__cause__) is kind


def test_those_of_nncf_pass_through() -> None:
    error = nncf.ValidationError("As it is.")
    with pytest.raises(nncf.ValidationError) as caught, as_nncf_errors():
        raise error
    assert caught.value is error


def test_a_judge_that_fails_leaves_the_best_network(model: nn.Module, dataset: nncf.Dataset, images: Tensor) -> None:
    """The core's error carries the network found until then: so does NNCF's."""
    calls = []

    def judge(each: nn.Module) -> float:
        calls.append(each)
        if len(calls) == 4:
            raise OSError("disk")
        return 1.0

    section = {"algorithm": "lowrank", "budget": {"accuracy_drop": 0.1}, "rank_multiple": 2}
    with pytest.raises(nncf.ValidationError, match="it raised OSError: disk") as caught:
        lowrank_nncf.create_compressed_model(model, {"compression": section}, dataset, validation_fn=judge)
    assert caught.value.compressed(images).shape == (len(images), 10)
    assert caught.value.plan["layers"]
