# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A training loop written for NNCF 2 runs unchanged: loss, scheduler, stages, checkpoints, and stripping."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from typing import Any

import nncf
import numpy as np
import openvino
import pytest
import torch
from nncf.torch.function_hook import is_wrapped
from nncf.torch.function_hook.pruning.rb.modules import RBPruningMask
from nncf.torch.quantization.layers import BaseQuantizer
from torch import Tensor, nn

import lowrank_nncf
from lowrank_nncf import CompressionStage
from lowrank_nncf.nncf3.model.wrapping import hooks

LOWRANK = {"algorithm": "lowrank", "ranks": {"conv": 16}, "decomposers": ["svd"]}
QUANTIZATION = {"algorithm": "quantization"}
MAGNITUDE = {
    "algorithm": "magnitude_sparsity",
    "sparsity_init": 0.2,
    "params": {"schedule": "multistep", "multistep_steps": [1, 2], "multistep_sparsity_levels": [0.2, 0.4, 0.6]},
}
RB = {
    "algorithm": "rb_sparsity",
    "sparsity_init": 0.02,
    "params": {"sparsity_target": 0.5, "sparsity_target_epoch": 3, "sparsity_freeze_epoch": 4},
}
INPUT = {"sample_size": [1, 3, 12, 12]}


def train(
    controller: lowrank_nncf.CompressionController, model: nn.Module, images: Tensor, epochs: int, rate: float = 1.0
) -> dict[str, list[Any]]:
    """The loop of NNCF 2's own samples."""
    target = torch.arange(64) % 10
    masks = [parameter for name, parameter in model.named_parameters() if name.endswith(".mask")]
    others = [parameter for name, parameter in model.named_parameters() if not name.endswith(".mask")]
    optimizer = torch.optim.SGD([{"params": masks or [torch.zeros(())], "lr": rate}, {"params": others, "lr": 0.01}])
    history: dict[str, list[Any]] = {"loss": [], "sparsity": [], "stage": []}
    model.train()
    for _ in range(epochs):
        controller.scheduler.epoch_step()
        for batch, labels in zip(images.split(16), target.split(16), strict=True):
            controller.scheduler.step()
            loss = nn.functional.cross_entropy(model(batch), labels) + controller.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        pruning = controller.statistics(quickly_collected_only=True).pruning
        history["loss"].append(float(loss.detach()))
        history["sparsity"].append(pruning and pruning.sparsity)
        history["stage"].append(controller.compression_stage())
    return history


def compress(
    model: nn.Module, dataset: nncf.Dataset | None, *sections: dict[str, Any], **more: Any
) -> tuple[lowrank_nncf.CompressionController, nn.Module]:
    config = {"input_info": INPUT, "compression": list(sections)}
    return lowrank_nncf.create_compressed_model(model, config, dataset, **more)


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(images)


def test_loop_with_every_section(model: nn.Module, images: Tensor, dataset: nncf.Dataset) -> None:
    controller, compressed = compress(model, dataset, LOWRANK, MAGNITUDE, QUANTIZATION)
    assert controller.compression_stage() is CompressionStage.PARTIALLY_COMPRESSED
    history = train(controller, compressed, images, epochs=4)
    assert history["sparsity"] == pytest.approx([0.2, 0.4, 0.6, 0.6], abs=0.002)
    partly, fully = CompressionStage.PARTIALLY_COMPRESSED, CompressionStage.FULLY_COMPRESSED
    assert history["stage"] == [partly, partly, fully, fully]
    assert history["loss"][-1] < history["loss"][0] + 0.5
    assert controller.scheduler.current_epoch == 3
    assert controller.scheduler.current_step == 15
    assert "Pruning by magnitude_sparsity: 60.0%" in controller.statistics().to_str()


def test_without_pruning_there_is_nothing_to_schedule(model: nn.Module, images: Tensor, dataset: nncf.Dataset) -> None:
    controller, compressed = compress(model, dataset, LOWRANK)
    train(controller, compressed, images, epochs=1)
    assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED
    assert float(controller.loss()) == 0
    assert controller.loss.statistics() == {"loss": 0.0}


def test_stage_of_pruning_alone(model: nn.Module) -> None:
    section = {"algorithm": "magnitude_sparsity", "params": {"sparsity_target": 0.5, "sparsity_target_epoch": 2}}
    controller, _ = compress(model, None, section)
    stages = [controller.compression_stage()]
    for _ in range(4):
        controller.scheduler.epoch_step()
        stages.append(controller.compression_stage())
    no, partly, fully = CompressionStage
    assert stages == [no, no, partly, fully, fully]


def test_learned_masks(model: nn.Module, images: Tensor) -> None:
    """The regularization loss draws the share of zeros to the target; from the freeze on, the masks stay."""
    controller, compressed = compress(model, None, RB)
    assert float(controller.loss().detach()) == pytest.approx((0.02 / 0.05) ** 2, rel=1e-3)
    assert controller.loss().requires_grad
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, mask in compressed.named_parameters():
            if name.endswith(".mask"):
                mask.normal_(1.0, 0.5, generator=generator)  # near the threshold, so that a short training is enough
    history = train(controller, compressed, images, epochs=4, rate=10.0)
    assert 0.2 < history["sparsity"][-1] < 0.8
    before = outputs(compressed, images)
    controller.scheduler.epoch_step()
    assert not any(isinstance(module, RBPruningMask) for module in compressed.modules())
    assert torch.equal(outputs(compressed, images), before)
    assert float(controller.loss()) == 0
    frozen = controller.statistics().pruning.sparsity
    train(controller, compressed, images, epochs=2)
    assert controller.statistics().pruning.sparsity == frozen == history["sparsity"][-1]


def test_learned_masks_draw_nothing_in_a_model_that_is_not_training(model: nn.Module, images: Tensor) -> None:
    _, compressed = compress(model.eval(), None, RB)
    with torch.no_grad():
        assert torch.equal(compressed(images), compressed(images))


def test_level_by_steps(model: nn.Module) -> None:
    params = {"sparsity_target": 0.8, "sparsity_target_epoch": 1, "power": 1.0}
    section = {
        "algorithm": "magnitude_sparsity",
        "params": {**params, "update_per_optimizer_step": True, "steps_per_epoch": 4},
    }
    controller, _ = compress(model, None, section)
    controller.scheduler.epoch_step()
    found = []
    for _ in range(4):
        controller.scheduler.step()
        found.append(controller.statistics().pruning.sparsity)
    assert found == pytest.approx([0.0, 0.2, 0.4, 0.6], abs=0.002)


def test_masks_of_magnitude_stay_from_the_freeze_on(model: nn.Module) -> None:
    params = {**MAGNITUDE["params"], "sparsity_freeze_epoch": 2}
    controller, _ = compress(model, None, {**MAGNITUDE, "params": params})
    found = []
    for _ in range(4):
        controller.scheduler.epoch_step()
        found.append(controller.statistics().pruning.sparsity)
    assert found == pytest.approx([0.2, 0.4, 0.4, 0.4], abs=0.002)
    assert controller.scheduler.current_sparsity_level == 0.4


@pytest.mark.parametrize("section", [MAGNITUDE, RB], ids=["magnitude", "rb"])
def test_training_goes_on_from_a_checkpoint(
    section: dict[str, Any], model: nn.Module, images: Tensor, dataset: nncf.Dataset
) -> None:
    controller, compressed = compress(model, dataset, LOWRANK, section)
    train(controller, compressed, images, epochs=2)
    state = json.loads(json.dumps(controller.get_compression_state()))
    fresh = type(model)()
    again, resumed = compress(fresh, None, LOWRANK, section, compression_state=state)
    resumed.load_state_dict(compressed.state_dict())
    assert again.scheduler.get_state() == controller.scheduler.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = train(controller, compressed, images, epochs=3)
        torch.manual_seed(0)
        assert train(again, resumed, images, epochs=3) == expected
    assert torch.equal(outputs(resumed, images), outputs(compressed, images))


def test_frozen_masks_are_in_the_state(model: nn.Module, images: Tensor) -> None:
    controller, compressed = compress(model, None, {**RB, "params": {"sparsity_freeze_epoch": 0}})
    controller.scheduler.epoch_step()
    restored = lowrank_nncf.load_from_state(type(model)(), controller.get_compression_state())
    restored.load_state_dict(compressed.state_dict())
    assert torch.equal(outputs(restored, images), outputs(compressed, images))


def test_strip_bakes_masks_in(model: nn.Module, images: Tensor, dataset: nncf.Dataset) -> None:
    controller, compressed = compress(model, dataset, LOWRANK, MAGNITUDE)
    stripped = controller.strip()
    assert is_wrapped(compressed)
    assert not is_wrapped(stripped)
    assert torch.equal(outputs(stripped, images), outputs(compressed, images))
    assert float((stripped.stem.weight == 0).float().mean()) > 0.01
    before = controller.statistics().pruning
    assert controller.strip(do_copy=False) is compressed
    assert not is_wrapped(compressed)
    assert controller.statistics().pruning == before


def test_strip_of_quantizers(model: nn.Module, images: Tensor, dataset: nncf.Dataset) -> None:
    controller, compressed = compress(model, dataset, MAGNITUDE, QUANTIZATION)
    before = outputs(compressed, images)
    for wrong in (nncf.StripFormat.DQ, nncf.StripFormat.IN_PLACE):
        with pytest.raises(nncf.ValidationError, match=rf"{wrong.name}.*Use StripFormat.NATIVE"):
            controller.strip(strip_format=wrong)
    try:
        controller.strip(do_copy=False)
    except nncf.InstallationError as error:
        # NNCF 3.0 does it by itself, later versions with the help of torchao
        assert re.search(r"'torchao'.*pip install torchao", str(error))
    assert torch.allclose(outputs(compressed, images), before, atol=1e-5)


@pytest.mark.skipif(not find_spec("torchao"), reason="NNCF strips quantizers with the help of torchao")
@pytest.mark.filterwarnings("ignore")  # torchao's own
def test_stripped_quantizers_are_those_of_torch(model: nn.Module, images: Tensor, dataset: nncf.Dataset) -> None:
    controller, compressed = compress(model, dataset, LOWRANK, {**QUANTIZATION, "overflow_fix": "disable"})
    before = outputs(compressed, images)
    stripped = controller.strip()
    assert next(hooks(compressed, (BaseQuantizer,)), None) is not None
    assert next(hooks(stripped, (BaseQuantizer,)), None) is None
    assert {type(hook).__name__ for _, hook in hooks(stripped)} == {"FakeQuantize"}
    torch.testing.assert_close(outputs(stripped, images), before, rtol=1e-4, atol=1e-4)
    assert controller.strip(do_copy=False) is compressed
    assert torch.equal(outputs(compressed, images), outputs(stripped, images))


def test_exported_model_has_zeros(model: nn.Module, images: Tensor, dataset: nncf.Dataset, tmp_path: Any) -> None:
    controller, compressed = compress(model, dataset, LOWRANK, {**MAGNITUDE, "params": {}, "sparsity_init": 0.5})
    controller.export_model(tmp_path / "model.xml")
    network = openvino.Core().read_model(tmp_path / "model.xml")
    weights = [node.data for node in network.get_ordered_ops() if node.get_type_name() == "Constant"]
    zeros = sum(int((weight == 0).sum()) for weight in weights if weight.ndim == 4)
    assert zeros > 0.4 * sum(weight.size for weight in weights if weight.ndim == 4)
    found = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([images.numpy()])[0]
    np.testing.assert_allclose(found, outputs(compressed, images).numpy(), atol=1e-5)
