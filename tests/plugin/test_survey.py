# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What is compressible, and the reason for everything else; MACs and geometry against independent counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.plugins import manager
from lowrank_plugin.settings import Settings
from lowrank_plugin.survey import survey


def look(model: nn.Module, example, **section):
    settings = Settings.from_mapping({"budget": {"macs": 0.5}, **section})
    return survey(model, example, settings, manager().registered("layer adapter"))


class Subclass(nn.Conv2d):
    """A convolution that may compute something else."""


class ReadsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.called, self.used, self.asked, self.idle = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        x = self.called(x).to(self.asked.weight.dtype)
        return self.asked(nn.functional.linear(x, self.used.weight))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 5), nn.Linear(4, 5)

    def forward(self, pair, *, scale):
        return {"sum": [self.left(pair["a"]) + self.right(pair["b"][0]) * scale]}


def test_reasons():
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8), Subclass(8, 8, 1), nn.ConvTranspose2d(8, 8, 2)
    )
    found = look(model, torch.zeros(1, 8, 9, 9), ignored_scopes=["0"])
    assert found.layers == {}
    assert found.refusals["0"] == "in the ignored scopes"
    assert found.refusals["1"].startswith("depthwise")
    assert found.refusals["2"] == "Subclass is a subclass of Conv2d that may compute something else"
    assert found.refusals["3"] == "no layer adapter for ConvTranspose2d"


def test_weights_that_others_read():
    found = look(ReadsWeight(), torch.zeros(2, 4))
    assert list(found.layers) == ["called"]
    assert "'weight' is read outside of its own forward" in found.refusals["used"]
    assert "'weight' is read outside of its own forward" in found.refusals["asked"]
    assert found.refusals["idle"] == "its forward was not called in the example run"


def test_shared_parametrised_and_broken_weights():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    broken = nn.Linear(4, 4)
    broken.weight.data[0, 0] = float("nan")
    model = nn.Sequential(first, second, parametrizations.weight_norm(nn.Linear(4, 4)), broken, nn.Linear(4, 4))
    found = look(model, torch.zeros(1, 4))
    assert list(found.layers) == ["4"]
    assert found.refusals["0"] == "its weight is shared with 1"
    assert found.refusals["1"] == "its weight is shared with 0"
    assert "parametrised" in found.refusals["2"]
    assert "NaN" in found.refusals["3"]


def test_attention_projection_is_left_alone():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = look(model, torch.zeros(1, 5, 8))
    assert set(found.layers) <= {"linear1", "linear2"}
    assert "self_attn.out_proj" in found.refusals


def test_nested_inputs_and_outputs():
    example = {"pair": {"a": torch.zeros(6, 3), "b": [torch.zeros(6, 4)]}, "scale": torch.ones(1)}
    found = look(Nested(), example)
    assert list(found.layers) == ["left", "right"]
    assert found.macs == 3 * 5 + 4 * 5


def test_macs_of_a_network(network):
    found = look(network, torch.zeros(2, 3, 16, 16))
    count = 256 * 9 * (3 * 24 + 2 * 24 * 24) + 64 * 9 * (24 * 32 + 2 * 32 * 32) + 32 * 10
    assert found.macs == count
    assert found.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert list(found.layers) == ["0", "1.conv1", "1.conv2", "2", "3.conv1", "3.conv2", "6"]


def test_a_layer_called_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x)[..., ::2])

    found = look(Twice(), torch.zeros(1, 4, 8))
    assert len(found.layers["conv"].calls) == 2
    assert found.macs == (8 + 4) * 4 * 4 * 3


def test_the_model_is_left_as_it_was(untouched):
    look(untouched.train(), torch.zeros(1, 3, 16, 16))
    assert untouched.training
    untouched.eval()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"ignored_scopes": ["1.conv3"]}, "'1.conv3' in 'ignored_scopes' matches no layer.*Did you mean '1.conv"),
        ({"target_scopes": "{re}encoder"}, "'{re}encoder' in 'target_scopes' matches no layer"),
        ({"ranks": {"7": 3}}, "'7' in 'ranks' matches no layer"),
        ({"target_scopes": "{re}("}, "Invalid pattern"),
    ],
    ids=["typo", "pattern", "ranks", "broken pattern"],
)
def test_scopes_that_match_nothing(network, section, message):
    with pytest.raises(ConfigurationError, match=message):
        look(network, torch.zeros(1, 3, 16, 16), **section)
