# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Files appear whole or not at all, and nothing is left behind, whatever goes wrong."""

from __future__ import annotations

import resource
from contextlib import contextmanager

import pytest
import torch

from lowrank_plugin.costs.timings import Timings
from lowrank_plugin.support.files import read_whole, replaced, write_whole


@contextmanager
def full_disk(size=64):
    """No file can grow beyond a few bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with full_disk(), pytest.raises(OSError, match="too large"), replaced(path) as new:
        new.write_text("x" * 10000)
    assert (path.read_text(), names(tmp_path)) == ("old", ["file"])


def test_nothing_is_left_where_the_writer_raises(tmp_path):
    with pytest.raises(KeyError), replaced(tmp_path / "file") as new:
        new.write_text("half")
        raise KeyError
    assert names(tmp_path) == []


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replaced(path) as new:
        new.write_text("new")
        assert path.read_text() == "old"
    assert (path.read_text(), names(tmp_path)) == ("new", ["file"])


def test_tensors_that_share_memory_are_written(tmp_path):
    tensor = torch.arange(6.0).reshape(2, 3)
    write_whole(tmp_path / "file", {"a": tensor, "b": tensor.mT}, {"notes": '{"x": 1}'})
    notes, found = read_whole(tmp_path / "file", "notes", OSError)
    assert notes == {"x": 1}
    torch.testing.assert_close(found, {"a": tensor, "b": tensor.mT})
    assert names(tmp_path) == ["file"]


def test_times_on_a_full_disk_leave_nothing_behind(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    timings = Timings({"backend": "none"})
    timings.update({"first": 1.0})
    with full_disk():
        timings.update({str(index): 1.0 for index in range(1000)})
    assert "cannot be kept" in caplog.text
    assert timings["999"] == 1.0, "they last as long as the object"
    assert names(timings.path.parent) == [timings.path.name]
    assert "first" in Timings({"backend": "none"})
