# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What is compressible, and the reason for everything else; MACs and geometry against independent counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import lowrank_plugin
from lowrank_plugin.errors import ConfigurationError, PlanError
from lowrank_plugin.layers.survey import survey
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
from lowrank_plugin.settings import Settings


def look(model: nn.Module, example, **section):
    settings = Settings.from_mapping({"budget": {"macs": 0.5}, **section})
    return survey(model, example, settings, manager().registered(LAYER_ADAPTERS))


class Square(nn.Conv2d):
    """A convolution that is constructed in another way, and tells more of itself."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, bias=False)
        self.note = "square"

    @staticmethod
    def pace() -> int:
        return 1

    def extra_repr(self) -> str:
        return f"{self.note} {super().extra_repr()}"


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Padded(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(nn.functional.pad(x, (1, 1, 1, 1)), weight, bias)


class Adds:
    def __call__(self, x):
        return super().__call__(x) + 1


class Mixed(Adds, nn.Conv2d):
    pass


class Adapted(nn.Conv2d):
    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.scale = nn.Parameter(torch.ones(1))


class Property(nn.Conv2d):
    @property
    def padding_mode(self) -> str:
        return "zeros"

    @padding_mode.setter
    def padding_mode(self, value: str) -> None:
        pass


class Asks(nn.Module):
    """Reads what only a subclass has."""

    def __init__(self, attribute: str) -> None:
        super().__init__()
        self.conv, self.attribute = Square(4), attribute

    def forward(self, x):
        return self.conv(x) if getattr(self.conv, self.attribute) else x


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
        nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8), Doubled(8, 8, 1), nn.ConvTranspose2d(8, 8, 2)
    )
    found = look(model, torch.zeros(1, 8, 9, 9), ignored_scopes=["0"])
    assert found.layers == {}
    assert found.refusals["0"] == "in the ignored scopes"
    assert found.refusals["1"].startswith("depthwise")
    assert found.refusals["2"] == f"{__name__}.Doubled is a subclass of torch.nn.Conv2d that may compute something else"
    assert found.refusals["3"] == "no layer adapter for ConvTranspose2d"


@pytest.mark.parametrize("kind", [Doubled, Mixed, Adapted])
def test_subclasses_that_may_compute_something_else(kind):
    found = look(nn.Sequential(kind(8, 8, 1)), torch.zeros(1, 8, 9, 9))
    wanted = f"{__name__}.{kind.__name__} is a subclass of torch.nn.Conv2d that may compute something else"
    assert found.refusals["0"] == wanted


@pytest.mark.parametrize("kind", [Padded, Property])
def test_subclasses_that_were_seen_to_compute_what_a_plain_layer_does(kind):
    assert list(look(nn.Sequential(kind(8, 8, 1)), torch.zeros(1, 8, 9, 9)).layers) == ["0"]


def test_subclasses_that_compute_the_same():
    torch.manual_seed(0)
    model, images = nn.Sequential(Square(8), nn.ReLU(), Square(8)), torch.randn(16, 8, 6, 6)
    small = lowrank_plugin.decompose(model, [images], ranks={"0": [6, 6], "2": 6}, decomposers=["tucker2", "svd"])
    assert [type(layer) for layer in small[0]] == [nn.Conv2d] * 3
    assert small[0](images).shape == model[0](images).shape
    state = lowrank_plugin.get_state(small)
    again = lowrank_plugin.restore(nn.Sequential(Square(8), nn.ReLU(), Square(8)), state)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(images), small(images))
    with pytest.raises(PlanError, match="is a Doubled"):
        lowrank_plugin.restore(nn.Sequential(Doubled(8, 8, 3), nn.ReLU(), Square(8)), state)


@pytest.mark.parametrize("attribute", ["note", "pace"])
def test_what_only_a_subclass_has_may_be_needed(attribute):
    found = look(Asks(attribute), torch.zeros(1, 4, 5, 5))
    assert found.refusals["conv"].startswith(f"its attribute {attribute!r} is read outside of its own forward")
    # every module has this one, a chain too
    assert list(look(Asks("named_modules"), torch.zeros(1, 4, 5, 5)).layers) == ["conv"]


def test_a_forward_that_was_replaced():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    original = model[0].forward
    model[0].forward = lambda x: original(x) + 1
    found = look(model, torch.zeros(1, 8, 9, 9))
    assert found.refusals == {"0": "its forward was replaced by another function"}
    assert list(found.layers) == ["1"]


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
