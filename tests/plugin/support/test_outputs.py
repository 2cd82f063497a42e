# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What outputs are: derivatives against autograd, probes against the curvature, kinds and axes that users may name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lowrank_plugin
from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.statistics.gradients import pull_back
from lowrank_plugin.support.outputs import Output, Sigmoid, Softmax, Values, judged, outputs_of
from lowrank_plugin.support.progress import Steps

CASES = [
    pytest.param(Values(), (4, 6), id="values"),
    pytest.param(Values(0.5), (4, 6), id="values-scaled"),
    pytest.param(Sigmoid(), (4, 6), id="sigmoid"),
    pytest.param(Softmax(), (4, 6), id="softmax"),
    pytest.param(Softmax(-1), (2, 3, 5), id="softmax-tokens"),
    pytest.param(Softmax(1), (2, 5, 3, 2), id="softmax-segmentation"),
]


@pytest.mark.parametrize(("loss", "shape"), CASES)
def test_derivatives_are_those_of_autograd(loss, shape):
    generator = torch.Generator().manual_seed(1)
    output, target, tangent = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    slope = torch.func.grad(lambda each: loss.value(each, target))(output)
    torch.testing.assert_close(loss.slope(output, target), slope)
    # symmetric, so that what it pulls back is what it pushes forward
    _, pull = torch.func.vjp(torch.func.grad(lambda each: loss.value(each, target)), output)
    torch.testing.assert_close(loss.curvature(output, tangent), pull(tangent)[0])
    assert float(loss.value(target, target)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("loss", "shape"), CASES)
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
    expected = torch.distributions.kl_divergence(*classes).sum()
    torch.testing.assert_close(Softmax(1).value(output, target), expected)
    answers = [torch.distributions.Bernoulli(logits=each) for each in (target, output)]
    torch.testing.assert_close(Sigmoid().value(output, target), torch.distributions.kl_divergence(*answers).sum())


def test_values_count_in_units_of_their_spread():
    output = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(4))
    one, ten = (
        Output("values").loss(factor * output).value(factor * (output + 1), factor * output) for factor in (1, 10)
    )
    torch.testing.assert_close(one, ten)
    # by one at each of 50 samples: half of a squared distance, over the variance
    torch.testing.assert_close(one, 50 / 2 / output.var(correction=0))


def test_every_floating_point_tensor_is_an_output():
    found = outputs_of((torch.zeros(2, 3), {"boxes": torch.ones(2, 4, 5).double(), "labels": torch.ones(2).long()}))
    assert [(tuple(tensor.shape), tensor.dtype, type(loss)) for tensor, loss in found] == [
        ((2, 3), torch.float32, Softmax),
        ((2, 4, 5), torch.float32, Values),
    ]
    described = outputs_of(torch.zeros(2, 3, 5), Output("softmax", -1))
    assert described[0][1] == Softmax(-1)


def test_what_cannot_be_described_is_refused():
    with pytest.raises(ConfigurationError, match="Did you mean 'softmax'"):
        Output("sofmax")
    with pytest.raises(ConfigurationError, match=r"no axis 2 of classes: its shape is \[4, 3\]"):
        Output("softmax", 2).loss(torch.zeros(4, 3))


def test_a_single_value_is_no_logit():
    assert judged(torch.zeros(8, 1)) == Output("values")


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


def test_a_network_with_one_output_is_distilled():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    small = lowrank_plugin.decompose(
        model, [torch.randn(64, 16)], budget={"macs": 0.6}, rank_multiple=1, repair="distill"
    )
    assert "" not in lowrank_plugin.report(small).to_dict()["distilled"], "it has no logits"
