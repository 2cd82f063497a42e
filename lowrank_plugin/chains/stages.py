# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Stages of chains as layers of their own, where a compressed model is compressed again."""

from __future__ import annotations

from torch import nn

from lowrank_plugin.chains.record import RECORD, record_of


def inner_stages(model: nn.Module) -> frozenset[str]:
    """Modules within chains that another stage follows. They must not get biases: no single layer computes what becomes
    of a bias where the next stage pads.

    >>> import torch, lowrank_plugin
    >>> small = lowrank_plugin.decompose(nn.Linear(8, 8), ranks={"": 2}, example_input=torch.ones(1, 8))
    >>> sorted(inner_stages(small)), sorted(inner_stages(nn.Linear(8, 8)))
    (['0'], [])

    :param model: any model, compressed or not.
    """
    found = set[str]()
    for record in record_of(model).rounds if hasattr(model, RECORD) else ():
        for name in record.chains:
            chain = model.get_submodule(name)
            for stage, module in list(chain.named_children())[:-1]:
                place = f"{name}.{stage}".lstrip(".")
                found.update(f"{place}.{inside}".rstrip(".") for inside, _ in module.named_modules())
    return frozenset(found)
