# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Statistics as a value: in place of data, merged, in files, and what is refused."""

from __future__ import annotations

import copy
import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lowrank_plugin
from lowrank_plugin import Statistics, collect_statistics
from lowrank_plugin.errors import StatisticsError
from lowrank_plugin.statistics.autocorrelation import Autocorrelation

HALF = {"budget": {"macs": 0.5}, "rank_multiple": 4}


@pytest.fixture
def seen(network, images) -> Statistics:
    return collect_statistics(network, images)


def test_statistics_take_the_place_of_data(network, images, seen, tmp_path, caplog):
    assert any(isinstance(each.patches, Autocorrelation) for each in seen.layers.values())
    seen.save(tmp_path / "seen.safetensors")
    loaded = Statistics.load(tmp_path / "seen.safetensors")
    from_data = lowrank_plugin.plan(network, images, **HALF)
    expected = {**from_data, "memory": {}}
    assert lowrank_plugin.plan(network, statistics=seen, **HALF) == expected
    assert lowrank_plugin.plan(network, statistics=loaded, **HALF) == expected
    # other budgets, ranks by hand and the two-sided norm from the same file
    thirds = lowrank_plugin.plan(network, statistics=loaded, budget={"parameters": 0.3}, norm="two-sided")
    assert thirds["model"]["parameters"][1] <= 0.3 * thirds["model"]["parameters"][0]
    x = images[0]
    expected = lowrank_plugin.decompose(network, images, repair="none", **HALF)
    found = lowrank_plugin.apply(network, from_data, statistics=loaded)
    assert "Repair is skipped" in caplog.text
    torch.testing.assert_close(found(x), expected(x))


def test_repair_takes_its_own_batches(network, images, seen):
    whole = lowrank_plugin.decompose(network, images, **HALF)
    found = lowrank_plugin.decompose(network, images, statistics=seen, **HALF)
    torch.testing.assert_close(found(images[0]), whole(images[0]))


def test_merged_runs_are_one_run_on_all_data(network, images, tmp_path):
    section = {"calibration": {"positions": 1e9}}
    whole = collect_statistics(network, images, **section)
    paths = [tmp_path / f"{index}.safetensors" for index in range(3)]
    for path, part in zip(paths, (images[:1], images[1:3], images[3:]), strict=True):
        collect_statistics(network, part, **section).save(path)
    first, *others = (Statistics.load(path) for path in paths)
    merged = first.merge(*others)
    assert merged.samples == whole.samples
    assert len(merged.data) == 3
    for name, each in whole.layers.items():
        assert merged.layers[name].patches.count == each.patches.count
        torch.testing.assert_close(merged.layers[name].inputs.mean, each.inputs.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(merged.layers[name].inputs.covariance, each.inputs.covariance, rtol=1e-5, atol=1e-6)
        mine, theirs = (sum(o.outputs[1:], start=o.outputs[0]) for o in (merged.layers[name], each))
        torch.testing.assert_close(mine.variance, theirs.variance, rtol=1e-5, atol=1e-6)
    assert merged.gradients.keys() == whole.gradients.keys()


def test_maps_of_different_sizes_merge(network, images):
    whole, cut = collect_statistics(network, images), collect_statistics(network, [x[..., :12] for x in images])
    merged = whole.merge(cut).layers["1.conv1"]
    assert merged.patches.count == 4 * 8 * (16 * 16 + 16 * 12)
    parts = [each.layers["1.conv1"].inputs for each in (whole, cut)]
    mean = sum(part.count * part.mean for part in parts) / merged.patches.count
    torch.testing.assert_close(merged.inputs.mean, mean)


def test_another_network_is_refused(network, images, seen):
    other = copy.deepcopy(network)
    with torch.no_grad():
        other[1].conv1.weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(StatisticsError, match=r"another network: the weight of its layer '1\.conv1' differs"):
        lowrank_plugin.plan(other, statistics=seen, **HALF)
    foreign = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(768, 10)))
    with pytest.raises(StatisticsError, match=r"they know '0', '1\.conv1', '1\.conv2' and 4 more, but this one has"):
        lowrank_plugin.plan(foreign, statistics=seen, **HALF)
    with pytest.raises(StatisticsError, match="different networks"):
        seen.merge(collect_statistics(other, images))


def test_the_same_data_is_not_merged_twice(seen):
    with pytest.raises(StatisticsError, match="would then count twice"):
        seen.merge(seen)


def test_layers_without_statistics_stay_dense(network, images, caplog):
    some = collect_statistics(network, images, target_scopes="1")
    made = lowrank_plugin.plan(network, statistics=some, budget={"macs": 0.9}, rank_multiple=4)
    assert made["layers"].keys() == {"1.conv1", "1.conv2"}
    assert "was not called on the calibration data" in made["skipped"]["3.conv1"]


@pytest.mark.parametrize("spoil", ["cut", "text", "empty", "missing", "tensors", "newer"])
def test_files_that_are_none_are_refused(seen, tmp_path, spoil):
    path = tmp_path / "seen.safetensors"
    seen.save(path)
    content = path.read_bytes()
    if spoil == "missing":
        path.unlink()
    elif spoil == "tensors":
        save_file({"weight": torch.zeros(2)}, path)
    elif spoil == "newer":
        save_file({"x": torch.zeros(2)}, path, metadata={"lowrank_statistics": json.dumps({"format": 99})})
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "text": b"{}", "empty": b""}[spoil])
    with pytest.raises(StatisticsError, match=r"seen\.safetensors"):
        Statistics.load(path)


def test_a_full_disk_loses_nothing(seen, tmp_path):
    path = tmp_path / "seen.safetensors"
    path.write_bytes(b"what was there before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(StatisticsError, match="nothing was changed there"):
            seen.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [each.name for each in tmp_path.iterdir()] == ["seen.safetensors"]
    assert path.read_bytes() == b"what was there before"
    with pytest.raises(StatisticsError, match="Cannot write"):
        seen.save(Path("/nonexistent/folder/seen.safetensors"))


def test_the_structure_of_inputs_is_kept(tmp_path):
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = nn.Embedding(5, 8), nn.Linear(8, 8)

        def forward(self, ids: torch.Tensor, more: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.linear(self.table(ids) + more["bias"])

    batch = (torch.ones(16, 3, dtype=torch.long), {"bias": torch.randn(16, 3, 8)})
    seen = collect_statistics(Adds(), [batch])
    seen.save(tmp_path / "seen")
    made = lowrank_plugin.plan(Adds(), None, statistics=None, example_input=batch, ranks={"linear": 4})
    assert made["norm"] == "frobenius"
    ids, more = Statistics.load(tmp_path / "seen").inputs()
    assert (ids.dtype, ids.shape, more["bias"].shape) == (torch.long, (16, 3), (16, 3, 8))
