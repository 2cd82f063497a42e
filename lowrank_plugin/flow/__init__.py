# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The steps in their order, from a model and data to a compressed network.

What :func:`lowrank_plugin.decompose` does, a step a line:

>>> import torch
>>> from torch import nn
>>> from lowrank_plugin.flow.choosing import choose
>>> from lowrank_plugin.flow.compressing import compress
>>> from lowrank_plugin.flow.problems import look
>>> from lowrank_plugin.flow.starting import source_of, start
>>> from lowrank_plugin.plugins import manager
>>> from lowrank_plugin.settings import Settings
>>> from lowrank_plugin.support.progress import SILENT
>>> model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
>>> settings = Settings.from_mapping({"budget": {"macs": 0.5}, "rank_multiple": 1})
>>> source = source_of(model, [torch.randn(256, 32)], settings)
>>> subject = start(model, source, None, settings, manager(), SILENT)
>>> list(subject.survey.layers), subject.norm.name
(['0', '2'], 'covariance')
>>> problems = look(subject, source)
>>> problems["2"].kernel.shape
torch.Size([1, 32, 32])
>>> plan = choose(problems, meter=None)
>>> plan.costs["macs"].after <= 0.5 * plan.costs["macs"].before
True
>>> compressed = compress(problems, plan, inplace=False)
>>> compressed.record.costs["macs"] == plan.costs["macs"]
True
"""
