# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Whatever users bring: what of it models get, how many samples it is of, where it is cut; and it stays as it was."""

from __future__ import annotations

import logging
import warnings
from collections import UserDict

import nncf
import numpy as np
import pytest
import torch
from plugin.data import batch_forms as forms
from plugin.data.batch_forms import DICTS, FORMS, IMAGES, A, B, Y, same
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lowrank_plugin
from lowrank_plugin.data.batches import (
    batch_size,
    call,
    evaluating,
    one_sample,
    take_batches,
    take_example,
)  # fmt: skip
from lowrank_plugin.data.inputs import Forward, is_one_shot
from lowrank_plugin.data.samples import leaves
from lowrank_plugin.errors import CalibrationError, PlanError
from lowrank_plugin.support.hooking import hooked

SECTION = {"budget": {"macs": 0.6}, "rank_multiple": 1, "decomposers": ["svd"]}


def tensors(value):
    return [leaf for leaf in leaves(value) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize(("model", "item", "wanted", "samples"), FORMS.values(), ids=FORMS)
def test_models_get_what_users_expect(model, item, wanted, samples):
    model, held, before = model(), list(leaves(item)), [tensor.clone() for tensor in tensors(item)]
    batches = take_batches(model, [item], samples=1000)
    assert [batch_size(batch) for batch in batches] == [samples]
    model.calls.clear()
    call(model, batches[0])
    [got] = model.calls
    assert all(same(got[name], value) for name, value in wanted.items()), got
    # copies, down to the last tensor
    given_storages = {
        tensor.data_ptr() for tensor in tensors(item) if tensor.layout is torch.strided and tensor.numel()
    }
    assert not given_storages & {each.data_ptr() for each in tensors(got) if each.layout is torch.strided}
    assert all(now is then for now, then in zip(leaves(item), held, strict=True))
    assert all(map(same, tensors(item), before))


@pytest.mark.parametrize(("model", "item", "wanted", "samples"), FORMS.values(), ids=FORMS)
def test_one_sample_is_one_or_all(model, item, wanted, samples):
    model = model()
    [batch] = take_batches(model, [item], samples=1000)
    first = one_sample(batch)
    if batch_size(first) != 1:
        assert first is batch
        assert batch_size(batch) == 30  # the dense graph
    call(model, first)
    assert model.calls[-1].keys() >= wanted.keys()


NNCF_FORMS = {
    "tensor": (forms.One, A, {"a": A}),
    "tuple": (forms.Two, (A, B), {"a": A, "b": B}),
    "optional by position": (forms.Optional, (A, B), {"a": A, "mask": B, "scale": None}),
    "dict": (forms.Two, {"a": A, "b": B}, {"a": A, "b": B}),
    "user dict": (forms.Two, UserDict(a=A, b=B), {"a": A, "b": B}),
    "list is one argument": (forms.Detector, IMAGES, {"images": IMAGES, "targets": None}),
    "list of one is one argument": (forms.Detector, IMAGES[:1], {"images": IMAGES[:1], "targets": None}),
    "list in a tuple": (forms.Detector, (IMAGES,), {"images": IMAGES, "targets": None}),
    "list of dicts": (forms.PerImage, DICTS, {"batched_inputs": DICTS}),
}


@pytest.mark.parametrize(("model", "item", "wanted"), NNCF_FORMS.values(), ids=NNCF_FORMS)
def test_transforms_give_what_nncf_passes(model, item, wanted):
    dataset, model = nncf.Dataset([("label", item)], lambda each: each[1]), model()
    call(model, take_batches(model, dataset, 100)[0])
    assert all(same(model.calls[-1][name], value) for name, value in wanted.items())


def test_a_list_of_an_nncf_dataset_without_transform_is_an_error_that_says_what_happened():
    with pytest.raises(CalibrationError, match=r"called with 1 positional argument.*forward\(input\)"):
        lowrank_plugin.plan(nn.Sequential(nn.Linear(4, 4)), nncf.Dataset([[A, Y]]), **SECTION)


EXAMPLES = {
    "tensor": (forms.One, A, {"a": A}),
    "tuple": (forms.Optional, (A, B), {"a": A, "mask": B}),
    "list": (forms.Two, [A, B], {"a": A, "b": B}),
    "user dict": (forms.Two, UserDict(a=A, b=B), {"a": A, "b": B}),
    "images": (forms.Detector, IMAGES, {"images": IMAGES}),
    "images in a tuple": (forms.Detector, (IMAGES,), {"images": IMAGES}),
}


@pytest.mark.parametrize(("model", "example", "wanted"), EXAMPLES.values(), ids=EXAMPLES)
def test_examples_are_spread(model, example, wanted):
    model = model()
    call(model, take_example(model, example))
    assert all(same(model.calls[-1][name], value) for name, value in wanted.items())


def wrappers():
    inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    yield pytest.param(nn.DataParallel(inner), id="DataParallel")
    yield pytest.param(AveragedModel(inner), id="AveragedModel")
    yield pytest.param(AveragedModel(nn.DataParallel(inner)), id="both")
    yield pytest.param(torch.compile(inner, backend="eager"), id="compiled")
    yield pytest.param(Adapted(Tuner(inner)), id="PEFT")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has deprecated it
        yield pytest.param(torch.jit.trace(inner, A), id="traced")
    yield pytest.param(torch.fx.symbolic_trace(inner), id="fx")


class Tuner(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


class Adapted(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.base_model, self.prompt = model, nn.Identity()

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)


@pytest.mark.parametrize("wrapper", list(wrappers()))
@pytest.mark.parametrize("item", [(A, Y), [A, Y], {"input": A, "labels": Y}], ids=["tuple", "list", "dict"])
def test_wrappers_are_looked_through(wrapper, item):
    [batch] = take_batches(wrapper, [item], 8)
    assert torch.equal(tensors(batch)[0], A)
    assert len(tensors(batch)) == 1


def test_a_distributed_wrapper_is_looked_through(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))
        assert Forward.of(wrapped).positional == ("input",)
    finally:
        torch.distributed.destroy_process_group()


def test_a_forward_of_any_number_that_holds_one_module_is_no_wrapper():
    class Concatenated(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(9, 2)

        def forward(self, *parts):
            return self.body(torch.cat(parts, dim=1))

    model = Concatenated()
    [batch] = take_batches(model, [(A, B)], 8)
    assert call(model, batch).shape == (8, 2)


def test_entries_that_are_left_out_are_named_once(caplog):
    with caplog.at_level(logging.WARNING):
        take_batches(forms.One(), [{"a": A, "labels": Y, "idx": Y}] * 3, 100)
    assert [record.message for record in caplog.records] == [
        "The entries 'idx', 'labels' of the calibration batches are left out: forward(a) has no such parameters."
    ]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([A, A])


SOURCES = {
    "loader": lambda: DataLoader(TensorDataset(A, Y), batch_size=4),
    "generator": lambda: (A[start : start + 4] for start in (0, 4)),
    "stream": lambda: iter(Stream()),
    "iterable dataset": Stream,
    "a tensor is one batch": lambda: A,
    "a dict is one batch": lambda: {"input": A},
    "an encoding is one batch": lambda: UserDict(input=A),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_sources(source):
    taken = take_batches(nn.Linear(4, 2), source(), 8)
    assert torch.equal(torch.cat([tensors(batch)[0] for batch in taken]), A)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([torch.randn(0, 3, 10, 10)], r"Batch 0 of the calibration data holds no sample.*\(0, 3, 10, 10\)"),
        ([torch.zeros(2, 3, 4, 4), torch.randn(0, 3, 4, 4)], "Batch 1 of the calibration data holds no sample"),
        ([(torch.randn(0, 4), torch.zeros(0))], "holds no sample"),
        ([], "calibration data is empty"),
        (nncf.Dataset([]), "calibration data is empty"),
        (DataLoader([]), "calibration data is empty"),
        ([None], "it is NoneType: None"),
        ([(None, Y)], "it is tuple of NoneType, Tensor"),
        ([np.zeros((2, 3))], r"it is ndarray(.|\n)*torch.from_numpy"),
        ([(np.zeros((2, 3)), np.zeros(2))], "it is tuple of ndarray"),
        ([{"input": np.zeros((2, 3))}], "it is dict of ndarray"),
        (np.zeros((2, 3)), "it is ndarray"),
        (["text"], "Expected a batch to hold at least one torch.Tensor, but it is str"),
        ([[]], "it is list"),
        ([{}], "it is dict"),
        (3, "iterable of batches, got int"),
        (nn.Linear(2, 2), "iterable of batches, got Linear"),
        (TensorDataset(A, Y), "a TensorDataset yields single samples"),
    ],
)
def test_what_cannot_be_used_is_named(data, message):
    with pytest.raises(CalibrationError, match=message):
        take_batches(nn.Conv2d(3, 2, 3), data, 100)


def test_errors_of_loaders_and_transforms_are_their_own():
    def broken(item):
        msg = "no such key"
        raise KeyError(msg)

    with pytest.raises(KeyError, match="no such key"):
        take_batches(nn.Linear(2, 2), nncf.Dataset([A], broken), 4)


@pytest.mark.parametrize("kind", [IndexError, AttributeError, ZeroDivisionError, RuntimeError, StopIteration, OSError])
def test_any_error_of_a_model_is_the_cause(kind):
    class Broken(nn.Module):
        def forward(self, x, mask=None):
            msg = "of the model"
            raise kind(msg)

    message = rf"\(8, 4\)\]: {kind.__name__}: of the model.*forward\(x, mask=None\)"
    with pytest.raises(CalibrationError, match=message) as caught:
        call(Broken(), A)
    assert type(caught.value.__cause__) is kind


@pytest.mark.parametrize("error", [RuntimeError("of the hook"), PlanError("of the hook"), KeyError("of the hook")])
def test_errors_of_hooks_are_not_blamed_on_batches(error):
    class Lenient(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            try:
                return self.inner(x)
            except (RuntimeError, ValueError, KeyError):
                return x

    def hook(*args):
        raise error

    model = Lenient()
    with pytest.raises(type(error)) as caught, hooked({model.inner: hook}):
        call(model, A)
    assert caught.value is error
    assert not model.inner._forward_hooks


def test_modes_and_contexts_are_put_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    with torch.inference_mode(), torch.autocast("cpu"):
        with evaluating(model):
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_autocast_enabled("cpu")
            assert not torch.is_grad_enabled()
            assert not any(module.training for module in model.modules())
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert [module.training for module in model.modules()] == [True, True, False]


def test_inference_tensors_are_data_too():
    with torch.inference_mode():
        x = torch.ones(2, 4)
    weight = torch.ones(4, requires_grad=True)

    class Weighted(nn.Module):
        def forward(self, x):
            return (x * weight).sum()

    call(Weighted(), x).backward()
    assert torch.equal(weight.grad, torch.full((4,), 2.0))


def test_no_gradient_reaches_the_data():
    x = torch.ones(64, 16, requires_grad=True)
    lowrank_plugin.plan(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), [x], **SECTION)
    assert x.grad is None


@pytest.mark.parametrize(
    ("source", "answer"),
    [((x for x in "ab"), True), (nncf.Dataset(x for x in "ab"), True), (iter([1]), True), (map(int, "12"), True),
     ([1], False), (nncf.Dataset([1]), False), (DataLoader([1]), False), (A, False), (None, False)],
)  # fmt: skip
def test_one_shot_sources_are_known(source, answer):
    assert is_one_shot(source) is answer
