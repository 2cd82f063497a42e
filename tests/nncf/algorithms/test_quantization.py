# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What the keys of the quantization section come to, seen on the quantizers themselves."""

from __future__ import annotations

from typing import Any

import nncf
import pytest
import torch
from nncf.torch.quantization.layers import AsymmetricQuantizer, BaseQuantizer, SymmetricQuantizer
from torch import Tensor, nn

import lowrank_nncf
from lowrank_nncf.nncf3.algorithms import quantization
from lowrank_nncf.nncf3.model.wrapping import hooks

QUANTIZATION = {"algorithm": "quantization"}


def quantizers(
    model: nn.Module, dataset: nncf.Dataset, section: dict[str, Any], **rest: Any
) -> dict[str, dict[str, Any]]:
    """The quantizers of a quantized model: those of weights and those of activations, by name."""
    config = {"compression": {**QUANTIZATION, **section}, **rest}
    _, quantized = lowrank_nncf.create_compressed_model(model, config, dataset)
    found: dict[str, dict[str, Any]] = {"weights": {}, "activations": {}}
    for name, hook in hooks(quantized, (BaseQuantizer,)):
        found["weights" if name.startswith("pre_hooks") else "activations"][name] = hook
    return found


@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("operand", ["weights", "activations"])
def test_mode(operand: str, mode: str, model: nn.Module, dataset: nncf.Dataset) -> None:
    found = quantizers(model, dataset, {operand: {"mode": mode, "bits": 8}, "overflow_fix": "disable"})[operand]
    kind = SymmetricQuantizer if mode == "symmetric" else AsymmetricQuantizer
    assert found
    assert all(isinstance(quantizer, kind) for quantizer in found.values())


def test_per_channel(model: nn.Module, dataset: nncf.Dataset) -> None:
    assert all(each.per_channel for each in quantizers(model, dataset, {})["weights"].values())
    tensor = quantizers(model, dataset, {"weights": {"per_channel": False}})["weights"]
    assert not any(each.per_channel for each in tensor.values())


def test_preset(model: nn.Module, dataset: nncf.Dataset) -> None:
    performance = quantizers(model, dataset, {"preset": "performance"})["activations"]
    mixed = quantizers(model, dataset, {"preset": "mixed"})["activations"]
    assert all(isinstance(each, SymmetricQuantizer) for each in performance.values())
    assert any(isinstance(each, AsymmetricQuantizer) for each in mixed.values())


def test_outputs(model: nn.Module, dataset: nncf.Dataset) -> None:
    plain = quantizers(model, dataset, {})["activations"]
    with_outputs = quantizers(model, dataset, {"quantize_outputs": True})["activations"]
    assert len(with_outputs) == len(plain) + 1


def test_overflow_fix(model: nn.Module, dataset: nncf.Dataset) -> None:
    """With the fix weights use half of the levels: the range is twice as wide."""
    scales = [
        [
            quantizer.scale.detach()
            for quantizer in quantizers(model, dataset, {"overflow_fix": fix})["weights"].values()
        ]
        for fix in ("enable", "disable")
    ]
    for fixed, plain in zip(*scales, strict=True):
        torch.testing.assert_close(fixed, plain * 127 / 64, rtol=0.02, atol=0)


def test_samples_and_type_of_the_range(model: nn.Module, images: Tensor) -> None:
    """With one sample the range is that sample's; a mean of ranges lies below the widest one."""
    items = [image[None] * (index + 1) for index, image in enumerate(images[:4])]

    def limit(**initializer: Any) -> float:
        found = quantizers(model, nncf.Dataset(items), {"initializer": {"range": initializer}})["activations"]
        return float(found["post_hooks.x__0.0"].scale.detach())

    one = limit(num_init_samples=1, type="min_max")
    assert one == pytest.approx(float(items[0].abs().max()), rel=0.02)
    widest, mean = limit(type="min_max"), limit(type="mean_min_max")
    assert widest == pytest.approx(max(float(item.abs().max()) for item in items), rel=0.02)
    assert one < mean < widest
    assert torch.isfinite(torch.tensor(limit(type="mean_percentile")))


def sizes(stage: nn.Module, model: nn.Module, images: Tensor) -> Tensor:
    """The mean squares of the channels that a stage puts out."""
    seen: list[Tensor] = []
    with stage.register_forward_hook(lambda module, args, output: seen.append(output)), torch.no_grad():
        model.eval()(images)
    return seen[0].square().mean(dim=(0, 2, 3))


def test_chains_are_rotated_in_a_copy(model: nn.Module, dataset: nncf.Dataset, images: Tensor) -> None:
    lowrank = {"algorithm": "lowrank", "ranks": {"conv": 16}, "decomposers": ["spatial_svd"]}
    _, small = lowrank_nncf.create_compressed_model(model, {"compression": lowrank}, dataset)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    _, quantized = lowrank_nncf.create_compressed_model(small, {"compression": QUANTIZATION}, dataset)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    unequal, equal = sizes(small.conv[0], small, images), sizes(quantized.conv[0], quantized, images)
    assert float(unequal.max() / unequal.min()) > 2 > 1.2 > float(equal.max() / equal.min())


@pytest.mark.parametrize(
    "section", [{"overflow_fix": "enable"}, {"overflow_fix": "disable", "weights": {"mode": "asymmetric"}}]
)
def test_weights_are_rounded_for_least_error(
    section: dict[str, Any], model: nn.Module, dataset: nncf.Dataset, images: Tensor
) -> None:
    """They are values of their quantizers, no larger than NNCF's own, and the network is closer to what it was."""
    model.eval()
    advanced = quantization._advanced(section)
    usual = nncf.quantize(model, dataset, advanced_parameters=advanced)
    _, found = lowrank_nncf.create_compressed_model(model, {"compression": {**QUANTIZATION, **section}}, dataset)
    with torch.no_grad():
        for name, layer in found.named_modules():
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                continue
            kind = "linear" if isinstance(layer, nn.Linear) else "conv2d"
            hook = f"pre_hooks.{name}/{kind}/0__1.0"
            quantizer = dict(hooks(found, (BaseQuantizer,)))[hook]
            torch.testing.assert_close(quantizer(layer.weight), layer.weight.detach())
            nearest = dict(hooks(usual, (BaseQuantizer,)))[hook](usual.get_submodule(name).weight)
            assert not torch.allclose(layer.weight, nearest)
            assert float(layer.weight.abs().max()) <= float(nearest.abs().max()) * (1 + 1e-5)
        wanted = model(images)
        assert float((found(images) - wanted).norm()) < 0.9 * float((usual(images) - wanted).norm())


def test_chains_with_masks_keep_their_weights(model: nn.Module, dataset: nncf.Dataset) -> None:
    lowrank = {"algorithm": "lowrank", "ranks": {"conv": 16}, "decomposers": ["svd"]}
    pruning = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5}
    config = {"input_info": {"sample_size": [1, 3, 12, 12]}, "compression": [lowrank, pruning]}
    _, small = lowrank_nncf.create_compressed_model(model, config, dataset)
    config["compression"] = [lowrank, pruning, QUANTIZATION]
    _, quantized = lowrank_nncf.create_compressed_model(model, config, dataset)
    for before, after in zip(small.conv, quantized.conv, strict=True):
        assert torch.equal(before.weight, after.weight)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    kinds = nn.Conv2d | nn.Linear
    return {name: each.weight.detach() for name, each in model.named_modules() if isinstance(each, kinds)}


@pytest.mark.parametrize("where", ["lowrank", "quantization"])
def test_rounding_keeps_to_the_memory_allowed(where: str, model: nn.Module, dataset: nncf.Dataset) -> None:
    """Where no second moments fit, weights are left as they are; the quantizers round them to the nearest."""
    lowrank = {"algorithm": "lowrank", "ranks": {"conv": 16}, "decomposers": ["svd"], "norm": "frobenius"}
    little = {"calibration": {"memory_gb": 1e-6}}
    sections = [{**lowrank, **little}, QUANTIZATION] if where == "lowrank" else [{**QUANTIZATION, **little}]
    _, quantized = lowrank_nncf.create_compressed_model(model, {"compression": sections}, dataset)
    before, after = weights_of(model), weights_of(quantized)
    assert all(torch.equal(after[name], before[name]) for name in ("stem", "head"))


def test_rounding_by_default(model: nn.Module, dataset: nncf.Dataset) -> None:
    _, quantized = lowrank_nncf.create_compressed_model(model, {"compression": QUANTIZATION}, dataset)
    before, after = weights_of(model), weights_of(quantized)
    assert not any(torch.equal(after[name], before[name]) for name in before)


class Conv3x3(nn.Conv2d):
    """As models define them: only its construction is new."""

    def __init__(self, *channels: int) -> None:
        super().__init__(*channels, 3, padding=1)


def test_subclasses_that_compute_the_same_are_rounded(model: nn.Module, dataset: nncf.Dataset) -> None:
    """The layer's adapter is asked, not its exact class."""
    _, expected = lowrank_nncf.create_compressed_model(model, {"compression": QUANTIZATION}, dataset)
    stem = Conv3x3(3, 32)
    stem.load_state_dict(model.stem.state_dict())
    model.stem = stem
    _, found = lowrank_nncf.create_compressed_model(model, {"compression": QUANTIZATION}, dataset)
    assert torch.equal(found.stem.weight, expected.stem.weight)


def test_messages_of_a_compression_go_to_nncf(
    model: nn.Module, dataset: nncf.Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    section = {**QUANTIZATION, "initializer": {"batchnorm_adaptation": {"num_bn_adaptation_samples": 8}}}
    model.norm = nn.Identity()
    nncf.nncf_logger.addHandler(caplog.handler)
    try:
        lowrank_nncf.create_compressed_model(model, {"compression": section}, dataset)
    finally:
        nncf.nncf_logger.removeHandler(caplog.handler)
    told = {record.name: record.getMessage() for record in caplog.records if record.name.startswith("lowrank")}
    assert told["lowrank_nncf.nncf3.compose"] == "Applying quantization"
    assert "nothing to adapt" in told["lowrank_nncf.nncf3.algorithms.adaptation"]
