# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Layers that are much wider than there are vectors: as compressed through covariances, from far less memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lowrank_plugin
from lowrank_plugin import Statistics, collect_statistics
from lowrank_plugin.errors import CalibrationError
from lowrank_plugin.int8.rounding import Grid, round_weights
from lowrank_plugin.layers.survey import survey
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
from lowrank_plugin.settings import Settings
from lowrank_plugin.statistics import passes
from lowrank_plugin.statistics.collection import collect
from lowrank_plugin.statistics.moments import Moments
from lowrank_plugin.statistics.norms import effective_rank, make_norm
from lowrank_plugin.statistics.vectors import Vectors

SECTION = {"budget": {"parameters": 0.4}, "rank_multiple": 4}


@pytest.fixture
def wide() -> nn.Module:
    """A network whose first linear layer has 1024 inputs."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(8), nn.Flatten(),
        nn.Linear(1024, 48), nn.ReLU(), nn.Linear(48, 10),
    ).eval()  # fmt: skip


def through_covariances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vectors, "few", staticmethod(lambda count, width: False))


def drawn(count: int, width: int = 40, groups: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, groups, width, generator=generator) * torch.linspace(1, 3, width) + 5


@pytest.mark.parametrize("groups", [1, 2])
def test_they_have_the_moments_that_products_have(groups):
    kept, summed = Vectors(), Moments()
    for count in (3, 0, 4):
        kept.add(drawn(count, groups=groups))
        summed.add(drawn(count, groups=groups))
    assert kept.count == summed.count == 7
    assert kept.finite
    torch.testing.assert_close(kept.mean, summed.mean)
    torch.testing.assert_close(kept.covariance, summed.covariance, atol=1e-4, rtol=1e-5)
    gradient, like = torch.eye(3).expand(groups, 3, 3), torch.zeros((), dtype=torch.float64)
    few, dense = (make_norm(each, gradient, like) for each in (kept, summed))
    torch.testing.assert_close(few.covariance, dense.covariance, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(few.gradient, dense.gradient)
    assert effective_rank(few) == pytest.approx(effective_rank(dense), rel=1e-5)


def test_a_copy_is_kept():
    vectors = drawn(3)
    kept = Vectors()
    kept.add(vectors)
    before = kept.mean.clone()
    vectors.zero_()
    assert torch.equal(kept.mean, before)


def test_float64_vectors_stay_what_they_are():
    vectors = drawn(5).double()
    kept, before = Vectors(vectors), vectors.clone()
    first, second = kept.covariance, kept.covariance
    assert torch.equal(vectors, before)
    assert torch.equal(first, second)
    torch.testing.assert_close(first[0], torch.cov(before[:, 0].T, correction=0))


def test_none_yet():
    assert (Vectors().count, Vectors().finite) == (0, False)
    with pytest.raises(CalibrationError, match="No vectors have been added yet"):
        _ = Vectors().mean
    bad = Vectors(torch.full((2, 1, 40), torch.nan))
    assert not bad.finite


@pytest.mark.parametrize("first", [Vectors, Moments])
@pytest.mark.parametrize("second", [Vectors, Moments])
@pytest.mark.parametrize("count", [4, 9])
def test_sums(first, second, count):
    parts = []
    for kind, seed in ((first, 3), (second, count)):
        part = kind()
        part.add(drawn(seed))
        parts.append(part)
    total, whole = parts[0] + parts[1], Moments()
    whole.add(torch.cat([drawn(3), drawn(count)]))
    # ten of a width of 40 are few
    assert isinstance(total, Vectors) == (first is second is Vectors and count == 4)
    assert total.count == 3 + count
    torch.testing.assert_close(total.mean, whole.mean)
    torch.testing.assert_close(total.covariance, whole.covariance, atol=1e-4, rtol=1e-5)
    empty = second()
    assert (parts[0] + empty) is parts[0]
    assert (empty + parts[0]) is parts[0]


@pytest.mark.parametrize("norm", ["covariance", "two-sided"])
def test_the_network_is_that_of_covariances(wide, images, norm, monkeypatch):
    seen = collect_statistics(wide, images)
    assert [name for name, each in seen.layers.items() if isinstance(each.patches, Vectors)] == ["4"]
    found = lowrank_plugin.plan(wide, images, norm=norm, **SECTION)
    small = lowrank_plugin.apply(wide, found, images)
    through_covariances(monkeypatch)
    expected = lowrank_plugin.plan(wide, images, norm=norm, **SECTION)
    assert expected["layers"]["4"]["decomposer"] == "svd"
    assert found["memory"]["peak"] < 0.2 * expected["memory"]["peak"]
    for name, entry in expected["layers"].items():
        other = found["layers"][name]
        assert (other["decomposer"], other["rank"]) == (entry["decomposer"], entry["rank"])
        assert other["error"] == pytest.approx(entry["error"], rel=1e-4)
        assert other["effective_rank"] == pytest.approx(entry["effective_rank"], rel=1e-4)
    dense = lowrank_plugin.apply(wide, expected, images)
    torch.testing.assert_close(small(images[0]), dense(images[0]), rtol=1e-4, atol=1e-5)


def test_files_and_merged_runs(wide, images, tmp_path):
    parts = []
    for index, batches in enumerate((images[:2], images[2:])):
        path = tmp_path / f"{index}.safetensors"
        collect_statistics(wide, batches).save(path)
        parts.append(Statistics.load(path))
    # 1024 x 1024 in float64 would be 8 MB
    assert path.stat().st_size < 1_000_000
    merged, whole = parts[0].merge(parts[1]), collect_statistics(wide, images)
    assert isinstance(merged.layers["4"].patches, Vectors)
    torch.testing.assert_close(merged.layers["4"].inputs.covariance, whole.layers["4"].inputs.covariance)
    plans = [lowrank_plugin.plan(wide, statistics=each, **SECTION) for each in (merged, whole)]
    assert plans[0]["layers"]["4"]["rank"] == plans[1]["layers"]["4"]["rank"]


def test_what_is_held_is_what_was_predicted(wide, images):
    settings = Settings(budget={"macs": 0.5})
    layer = survey(wide, images[0], settings, manager().registered(LAYER_ADAPTERS)).layers["4"]
    predicted = passes.need(layer, wide[4], 32, 8, 12.0)
    held = collect(wide, {"4": layer}, images)["4"].patches.rows.nbytes
    # in parts and put together, once each
    assert predicted.held == 2 * held
    assert predicted.held + predicted.passing < 8 * 1024**2 / 10


def test_nan_is_refused(wide, images, caplog):
    with torch.no_grad():
        wide[0].bias[3] = torch.nan
    small = lowrank_plugin.decompose(wide, images, ranks={"4": [8]})
    assert "Layer 4 stays dense: its inputs contain NaN or infinity." in caplog.text
    assert isinstance(small[4], nn.Linear)


def test_weights_too_wide_to_be_rounded_by_moments_are_left_alone(wide, images, monkeypatch):
    grid = Grid(torch.full((48, 1), 0.01), torch.full((48, 1), -1.0), torch.full((48, 1), 1.0))
    before = wide[4].weight.detach().clone()
    monkeypatch.setattr("lowrank_plugin.int8.rounding._COPIES", 2000)
    round_weights(wide, {"4": grid}, images)
    assert torch.equal(wide[4].weight, before)
    monkeypatch.undo()
    round_weights(wide, {"4": grid}, images)
    torch.testing.assert_close(wide[4].weight, grid.nearest(wide[4].weight))
    assert not torch.equal(wide[4].weight, before)
