# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""How many samples a batch is of, and where it is cut."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin.data import batch_forms as forms
from plugin.data.batch_forms import EDGES, IMAGES, NODES, A, same
from torch import nn

from lowrank_plugin.data.batches import (
    batch_size,
    call,
    enough,
    one_sample,
    split,
    take_batches,
)  # fmt: skip
from lowrank_plugin.data.samples import cut, leaves, shapes
from lowrank_plugin.errors import CalibrationError

SECTION = {"budget": {"macs": 0.6}, "rank_multiple": 1, "decomposers": ["svd"]}


def tensors(value):
    return [leaf for leaf in leaves(value) if isinstance(leaf, torch.Tensor)]


def test_messages_show_the_shapes_that_were_given():
    batches = take_batches(nn.Linear(3, 2), [torch.zeros(100, 7)], samples=10)
    pieces, _ = split(batches, 1 / 5, most=2)
    for batch in (*batches, *pieces, one_sample(pieces[0])):
        with pytest.raises(CalibrationError, match=r"tensors of shapes \[\(100, 7\)\]"):
            call(nn.Linear(3, 2), batch)


@pytest.mark.parametrize("samples", [1, 17, 29])
def test_graphs_are_never_cut(samples):
    edges = torch.randint(NODES.shape[0], (2, 90))
    item = (NODES, edges, torch.zeros(30))
    for batch in take_batches(forms.Two(), [item] * 3, samples):
        assert shapes(batch) == [(30, 5), (2, 90)]
        assert [tuple(each.shape) for each in tensors(one_sample(batch))] == [(30, 5), (2, 90)]
    learned, held_out = split([(NODES, EDGES)] * 8, 1 / 8, 2)
    assert [len(learned), len(held_out)] == [7, 1]
    assert len(enough([(NODES, EDGES)] * 8, 3)) == 3


def test_what_cannot_be_told_apart_cannot_be_held_out():
    with pytest.raises(CalibrationError, match="one calibration batch that cannot be cut, but at least 2"):
        split([(NODES, torch.eye(30))], 1 / 8, 4)
    with pytest.raises(CalibrationError, match="Got 1 calibration sample, but at least 2"):
        split([A[:1]], 1 / 8, 4)


def test_lists_of_images_are_cut_as_lists():
    [batch] = take_batches(forms.Detector(), [(IMAGES, None)], samples=2)
    assert same(batch, (IMAGES[:2],))
    assert same(one_sample(batch), (IMAGES[:1],))
    learned, held_out = split([(IMAGES,)] * 2, 1 / 3, 1)
    assert [batch_size(piece) for piece in (*learned, *held_out)] == [1] * 6


def nestings(size):
    # neither images nor square matrices
    shape = st.lists(st.integers(11, 13), max_size=3).filter(lambda axes: len(axes) != 2)
    tensor = st.builds(lambda axes, seed: torch.randn(size, *axes, generator=torch.Generator().manual_seed(seed)),
                       shape, st.integers(0, 99))  # fmt: skip
    leaf = st.one_of(tensor, tensor, st.sampled_from([None, True, "text", torch.tensor(2.0), torch.ones(1, 3)]))
    pair = st.tuples(leaf, leaf)
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3), st.tuples(inner, inner), st.builds(forms.Pair, inner, inner),
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1), st.builds(forms.Record, tensor, inner),
            st.builds(lambda each: UserDict(x=each), inner), st.builds(forms.OutputLike, tensor, inner),
        ),
        max_leaves=6,
    ) | pair  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_pieces_put_together_are_the_batch(data):
    size = data.draw(st.integers(5, 9))
    first = torch.arange(float(size))[:, None].expand(size, 11)
    batch = (first, data.draw(nestings(size)))
    if data.draw(st.booleans()):
        batch = dict(zip("xy", batch, strict=True))
    assert batch_size(batch) == size
    most = data.draw(st.integers(1, size - 1))
    learned, held_out = split([batch], 1 / size if most == 1 else 1 / 2, most)
    pieces = sorted([*learned, *held_out], key=lambda piece: float(tensors(piece)[0][0, 0]))
    assert sum(batch_size(piece) for piece in pieces) == size
    assert max(batch_size(piece) for piece in pieces) <= most
    for index, whole in enumerate(tensors(batch)):
        parts = [tensors(piece)[index] for piece in pieces]
        of_all = not whole.dim() or whole.shape[0] == 1
        assert all(torch.equal(part, whole) for part in parts) if of_all else torch.equal(torch.cat(parts), whole)
    assert [type(leaf) for leaf in leaves(pieces[0])] == [type(leaf) for leaf in leaves(batch)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=9), st.integers(0, 8))
def test_lists_of_images_are_counted_and_cut_by_image(sizes, place):
    images = [torch.randn(3, *size) for size in sizes]
    assert batch_size((images,)) == batch_size((tuple(images),)) == batch_size({"images": images}) == len(images)
    [first], [rest] = cut((images,), 0, place), cut((images,), place, len(images))
    assert all(map(torch.equal, [*first, *rest], images))
