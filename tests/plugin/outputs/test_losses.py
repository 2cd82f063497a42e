# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What outputs are: losses against autograd and torch's distributions, what is made of what models return."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import jsonschema
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.outputs.given import Given, rooted
from lowrank_plugin.outputs.joint import Joint, Layout
from lowrank_plugin.outputs.kinds import Output, judged
from lowrank_plugin.outputs.losses import Sigmoid, Softmax, Values
from lowrank_plugin.outputs.reading import Outputs, named_tensors
from lowrank_plugin.settings import SCHEMA, Settings
from lowrank_plugin.statistics.gradients import pull_back
from lowrank_plugin.support.progress import Steps

JOINT = Joint(Layout(((3,), (2, 2))), (Softmax(), Values(0.5)))
CASES = [
    pytest.param(Values(), (4, 6), id="values"),
    pytest.param(Values(0.5), (4, 6), id="values-scaled"),
    pytest.param(Sigmoid(), (4, 6), id="sigmoid"),
    pytest.param(Sigmoid(0.25), (4, 6), id="sigmoid-share"),
    pytest.param(Softmax(), (4, 6), id="softmax"),
    pytest.param(Softmax(-1), (2, 3, 5), id="softmax-tokens"),
    pytest.param(Softmax(1, 0.25), (2, 5, 3, 2), id="softmax-segmentation"),
    pytest.param(JOINT, (4, 7), id="joint"),
]


def divergence(output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """A loss of a sample each, as a user might give it."""
    wanted = reference.log_softmax(1)
    return F.kl_div(output.log_softmax(1), wanted, log_target=True, reduction="none").flatten(1).sum(dim=1)


def given(function=divergence, shape=(6,)):
    return Given(function, Layout((shape,)), lambda tensors: tensors[0])


@pytest.mark.parametrize(("loss", "shape"), CASES)
def test_derivatives_are_those_of_autograd(loss, shape):
    generator = torch.Generator().manual_seed(1)
    output, target, tangent = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    slope = torch.func.grad(lambda each: loss.value(each, target))(output)
    torch.testing.assert_close(loss.slope(output, target), slope)
    hessian = torch.autograd.functional.hessian(lambda each: loss.value(each, output), output)
    expected = torch.tensordot(hessian, tangent, dims=tangent.dim())
    torch.testing.assert_close(loss.curvature(output, tangent), expected)
    assert float(loss.value(target, target)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("loss", "shape"), [*CASES, pytest.param(given(), (4, 6), id="given")])
@pytest.mark.parametrize("way", ["probe", "drawn"])
def test_probes_have_the_curvature_as_second_moments(loss, shape, way):
    count = 20000
    sample = torch.randn((1, *shape[1:]), generator=torch.Generator().manual_seed(2))
    probes = getattr(loss, way)(sample.expand(count, *shape[1:]), torch.Generator().manual_seed(0)).flatten(1)
    units = torch.eye(probes.shape[1]).unflatten(1, shape[1:])
    expected = torch.stack([loss.curvature(sample, unit[None]).flatten() for unit in units])
    # entries are means of products of variance at most 3
    torch.testing.assert_close(probes.T @ probes / count, expected, atol=5 * (3 / count) ** 0.5, rtol=0)


def test_divergences_are_those_of_torch_distributions():
    generator = torch.Generator().manual_seed(3)
    output, target = (torch.randn(2, 5, 3, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    classes = [torch.distributions.Categorical(logits=each.movedim(1, -1)) for each in (target, output)]
    places = torch.distributions.kl_divergence(*classes)
    torch.testing.assert_close(Softmax(1).value(output, target), places.sum())
    torch.testing.assert_close(Output("softmax", 1).loss(output).value(output, target), places.mean(dim=(1, 2)).sum())
    answers = [torch.distributions.Bernoulli(logits=each) for each in (target, output)]
    places = torch.distributions.kl_divergence(*answers)
    torch.testing.assert_close(Sigmoid().value(output, target), places.sum())
    mean = places.sum(dim=1).mean(dim=(1, 2)).sum()
    torch.testing.assert_close(Output("sigmoid", 1).loss(output).value(output, target), mean)


def test_values_count_in_units_of_their_variance():
    output = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(4))
    one, ten = (
        Output("values").loss(factor * output).value(factor * (output + 1), factor * output) for factor in (1, 10)
    )
    torch.testing.assert_close(one, ten)
    # by one at each of 50 samples: the squared error over the variance
    torch.testing.assert_close(one, 50 / output.var(correction=0))


def test_a_loss_of_ones_own_has_the_derivatives_of_the_one_built_in():
    generator = torch.Generator().manual_seed(1)
    output, target, tangent = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(3))
    mine, known = given(), Softmax()
    torch.testing.assert_close(mine.value(output, target), known.value(output, target))
    torch.testing.assert_close(mine.slope(output, target), known.slope(output, target))
    torch.testing.assert_close(mine.curvature(output, tangent), known.curvature(output, tangent))


def test_roots_are_those_of_the_eigenvalues():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, 8, 8, generator=generator, dtype=torch.float64)
    matrix = matrix @ matrix.mT
    vectors = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    values, directions = torch.linalg.eigh(matrix)
    expected = (directions * values.sqrt().unsqueeze(1) @ directions.mT @ vectors.unsqueeze(2)).squeeze(2)

    def times(each):
        return (matrix @ each.unsqueeze(2)).squeeze(2)

    torch.testing.assert_close(rooted(times, vectors, steps=8), expected)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda output, reference: (output - reference).abs().sum(dim=1), "second derivative there is zero"),
        (lambda output, reference: (output - reference).square(), r"a tensor \[B\], not shape \[4, 6\]"),
        (lambda output, reference: 3.0, r"a tensor \[B\], not float"),
    ],
    ids=["no curvature", "not of each sample", "no tensor"],
)
def test_functions_that_are_no_losses_are_refused(function, message):
    with pytest.raises(ConfigurationError, match=message):
        given(function).probe(torch.randn(4, 6), torch.Generator())


@dataclass
class Found:
    logits: torch.Tensor
    boxes: list[torch.Tensor]
    extra: object = None


def test_outputs_are_named_by_where_they_stand():
    zeros = torch.zeros(2, 3)
    pair = namedtuple("pair", ["mean", "scale"])
    nested = OrderedDict(logits=zeros, aux=(zeros, {"0": zeros}), pair=pair(zeros, zeros), found=Found(zeros, [zeros]))
    assert [name for name, _ in named_tensors(nested)] == [
        "logits", "aux.0", "aux.1.0", "pair.mean", "pair.scale", "found.logits", "found.boxes.0",
    ]  # fmt: skip
    assert [name for name, _ in named_tensors(zeros)] == [""]
    assert [name for name, _ in named_tensors((zeros, zeros))] == ["0", "1"]


@dataclass
class LanguageOutput(OrderedDict):
    """An ordered dict and a dataclass at once, without entries for what is None: as Hugging Face has them."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: object = None

    def __post_init__(self) -> None:
        self.update({name: each for name, each in vars(self).items() if each is not None})


def test_outputs_that_are_mappings_and_dataclasses_at_once_are_read_by_name():
    logits, cache = torch.randn(2, 3, 7), torch.randn(2, 4, 3, 5)
    [leaf] = Outputs().read(LanguageOutput(torch.tensor(1.0), logits, ((cache, cache),)))
    assert (leaf.name, leaf.loss) == ("logits", Softmax(-1, 1 / 3))


def test_what_tells_nothing_is_left_out():
    outputs = Outputs()
    returned = {
        "logits": torch.randn(4, 5),
        "loss": torch.tensor(0.7),
        "aux_loss": torch.randn(4),
        "boxes": torch.zeros(0, 4),
        "labels": torch.ones(4, dtype=torch.long),
        "mask": torch.ones(4, 5, dtype=torch.bool),
        "scale": torch.full((4, 1), 0.1),
        "past_key_values": [(torch.randn(4, 2, 3, 5), torch.randn(4, 2, 3, 5))],
    }
    assert [leaf.name for leaf in outputs.read(returned)] == ["logits"]
    assert outputs.left_out.keys() == {*returned, "past_key_values.0.0", "past_key_values.0.1"} - {
        "logits", "past_key_values",
    }  # fmt: skip
    assert outputs.left_out["scale"] == "it is the same everywhere"
    # where there is nothing else they are the output
    assert [leaf.name for leaf in Outputs().read({"hidden_states": torch.randn(4, 3, 5)})] == ["hidden_states"]


@pytest.mark.parametrize(
    ("shape", "name", "words", "expected"),
    [
        ((8, 10), "", 0, Output("softmax")),
        ((8, 1), "", 0, Output("values")),
        ((8, 1), "logits", 0, Output("values")),
        ((8,), "logits", 0, Output("values")),
        ((8, 5, 10), "", 0, Output("values")),
        ((8, 5, 10), "logits", 0, Output("softmax", -1)),
        ((8, 5, 10), "0.pred_logits", 0, Output("softmax", -1)),
        ((8, 5, 10), "", 10, Output("softmax", -1)),
        ((8, 5, 10, 10), "logits", 0, Output("softmax", 1)),
        ((8, 5, 10, 10), "out", 0, Output("values")),
        ((8, 4), "0.boxes", 0, Output("values")),
        ((8, 4), "0.class_logits", 0, Output("softmax")),
        ((8, 4), "aux.0", 0, Output("softmax")),
        ((8, 4), "0.1", 0, Output("softmax")),
    ],
)
def test_what_nothing_is_said_of_is_judged(shape, name, words, expected):
    assert judged(torch.randn(shape, generator=torch.Generator().manual_seed(0)), name, words) == expected


@pytest.mark.parametrize(("shape", "axis"), [((8, 5, 10), -1), ((8, 5, 10), 1), ((8, 5, 6, 7), 1), ((8, 10), 1)])
def test_probabilities_cost_what_their_logits_cost(shape, axis):
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    [leaf] = Outputs().read(logits.softmax(axis))
    assert leaf.loss == Output("softmax", axis).loss(logits)
    torch.testing.assert_close(leaf.loss.value(leaf.tensor, target), leaf.loss.value(logits, target))
    # what is pulled back through the network's own softmax is the curvature in its logits
    logits.requires_grad_()
    [leaf] = Outputs().read(logits.softmax(axis))
    probe = leaf.loss.probe(leaf.tensor.detach(), torch.Generator().manual_seed(1))
    [pulled] = torch.autograd.grad(leaf.tensor, logits, probe)
    torch.testing.assert_close(pulled, leaf.loss.probe(logits.detach(), torch.Generator().manual_seed(1)))


def test_probabilities_of_answers_are_those_that_are_said_to_be():
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Output("sigmoid", probabilities=True).logits(logits.sigmoid()), logits)
    assert Output("sigmoid").logits(logits.sigmoid()).max() < 1
    with pytest.raises(ConfigurationError, match="goes beyond 0 and 1"):
        Output("sigmoid", probabilities=True).logits(logits)


def test_outputs_are_what_users_say():
    returned = {
        "scores": torch.randn(4, 3),
        "aux": [torch.randn(4, 3), torch.randn(4, 3, 5)],
        "ids": torch.ones(4).long(),
    }
    said = {"scores": Output("sigmoid"), "aux": None}
    assert [(leaf.name, leaf.loss) for leaf in Outputs(said).read(returned)] == [("scores", Sigmoid())]
    [*_, last] = Outputs({"2": Output("softmax", -1)}).read(returned)
    assert (last.name, last.loss) == ("aux.1", Softmax(-1, 1 / 3))
    every = Outputs(Output("values")).read(returned)
    assert [(leaf.name, type(leaf.loss)) for leaf in every] == [
        ("scores", Values), ("aux.0", Values), ("aux.1", Values),
    ]  # fmt: skip
    boxes = [
        {"boxes": torch.randn(3, 4), "scores": torch.randn(3)},
        {"boxes": torch.randn(2, 4), "scores": torch.randn(2)},
    ]
    assert [leaf.name for leaf in Outputs({"boxes": None}).read(boxes)] == ["0.scores", "1.scores"]


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ConfigurationError, match="Did you mean 'softmax'"):
        Output("sofmax")
    with pytest.raises(ConfigurationError, match=r"no axis 2 of classes: its shape is \[4, 3\]"):
        Outputs(Output("softmax", 2)).read(torch.zeros(4, 3))
    with pytest.raises(ConfigurationError, match=r"no output 'logit'.* Did you mean 'logits'\? It has: logits \(0\)"):
        Outputs({"logit": None}).read({"logits": torch.zeros(4, 3)})
    with pytest.raises(ConfigurationError, match="give it again"):
        Outputs("callable").read(torch.zeros(4, 3))


@pytest.mark.parametrize(
    "value",
    [
        "auto",
        {"kind": "softmax", "axis": -1},
        {"kind": "values"},
        {"logits": {"kind": "sigmoid", "probabilities": True}, "aux": "ignore", "1": None},
        {0: {"kind": "softmax"}},
        divergence,
    ],
    ids=["auto", "axis", "kind", "by name", "by number", "function"],
)
def test_settings_say_what_outputs_are(value):
    settings = Settings.from_mapping({"budget": {"macs": 0.5}, "output": value})
    written = json.loads(json.dumps(settings.to_mapping()))
    jsonschema.validate(written, SCHEMA)
    again = Settings.from_mapping(written)
    assert again.to_mapping() == written
    assert again == settings or again.output == "callable"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("softmax", r"expected \"auto\", {\"kind\""),
        ({"kind": "sofmax"}, r"'sofmax' .*expected \"softmax\", \"sigmoid\" or \"values\""),
        ({"logits": {"kind": "sofmax"}}, r"\['logits'\]\['kind'\]: expected \"softmax\", \"sigmoid\""),
        ({"logits": "ignor"}, r"\['logits'\]: expected .* or \"ignore\""),
    ],
)
def test_mistakes_in_settings_are_named(value, message):
    with pytest.raises(ConfigurationError, match=message):
        Settings.from_mapping({"budget": {"macs": 0.5}, "output": value})


def test_several_outputs_stand_in_one_matrix():
    generator = torch.Generator().manual_seed(0)
    returned, other = (
        {"logits": torch.randn(4, 3, generator=generator), "map": torch.randn(4, 2, 2, generator=generator)}
        for _ in range(2)
    )
    outputs = Outputs()
    whole = outputs.whole(returned)
    leaves = outputs.read(returned)
    expected = sum(leaf.loss.value(other[leaf.name], leaf.tensor) for leaf in leaves)
    torch.testing.assert_close(whole.loss.value(whole.of(other), whole.of(returned)), expected)
    assert whole.of({"logits": returned["logits"]}) is None
    assert whole.loss.unit == "nats + relative squared error"
    assert Outputs().whole({"a": torch.randn(4, 3), "b": torch.randn(2, 3)}) is None


def test_a_function_gets_what_the_model_returns():
    returned = Found(torch.randn(4, 3), [torch.randn(4, 2)], torch.ones(4, dtype=torch.long))

    def loss(output, reference):
        assert isinstance(output, Found) and output.extra is None
        return (output.boxes[0] - reference.boxes[0]).square().sum(dim=1)

    [leaf] = Outputs(loss).read(returned)
    expected = returned.boxes[0].square().sum()
    torch.testing.assert_close(leaf.loss.value(torch.zeros_like(leaf.tensor), leaf.tensor), expected)
    assert leaf.loss.unit == "the given loss"


def test_the_curvature_of_logits_reaches_layers():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5)), torch.randn(64, 4)
    sums: dict[str, torch.Tensor] = {}

    def watch(module, args, kwargs, output):
        def receive(gradient):
            sums["0"] = sums.get("0", 0) + gradient.T @ gradient

        return receive

    batches = [x] * 200
    found = pull_back(model, {"0": watch}, batches, sums, samples=200 * 64, seed=0, description="", steps=Steps())["0"]
    probability = model(x).softmax(dim=1)
    fisher = torch.diag(probability.mean(dim=0)) - probability.T @ probability / 64
    torch.testing.assert_close(found, fisher, atol=0.01, rtol=0)
