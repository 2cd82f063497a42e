# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The main job end to end: a config in, a smaller int8 network out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
import pytest
import torch
from nncf.torch.function_hook.hook_storage import HookStorage
from torch import Tensor, nn

import lowrank_nncf
import lowrank_plugin
from lowrank_nncf.logs import nncf_logging

LOWRANK = {"algorithm": "lowrank", "budget": {"macs": 0.7}}
QUANTIZATION = {"algorithm": "quantization", "overflow_fix": "enable"}
SECTIONS = {"lowrank": [LOWRANK], "int8": [QUANTIZATION], "both": [LOWRANK, QUANTIZATION]}


def compress(
    model: nn.Module, dataset: nncf.Dataset | None, *sections: dict[str, Any], **rest: Any
) -> tuple[lowrank_nncf.CompressionController, nn.Module]:
    return lowrank_nncf.create_compressed_model(model, {"compression": list(sections), **rest}, dataset)


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    training = model.training
    with torch.no_grad():
        values = model.eval()(images)
    model.train(training)
    return values


def relative(values: Tensor, reference: Tensor) -> float:
    return float((values - reference).norm() / (reference - reference.mean(0)).norm())


def test_an_accuracy_drop_is_kept(model: nn.Module, images: Tensor, dataset: nncf.Dataset) -> None:
    expected = outputs(model, images)

    def agreement(each: nn.Module) -> float:
        return -relative(each(images), expected)

    section = {"algorithm": "lowrank", "budget": {"accuracy_drop": 0.2}, "rank_multiple": 2}
    controller, compressed = lowrank_nncf.create_compressed_model(
        model, {"compression": [section, QUANTIZATION]}, dataset, validation_fn=agreement
    )
    told = controller.statistics().to_dict()["lowrank"]["accuracy"]
    assert told["chosen"]["drop"] <= 0.2
    assert relative(outputs(compressed, images), expected) < 0.3


@pytest.mark.parametrize("sections", SECTIONS.values(), ids=SECTIONS)
def test_compressed_model_computes_nearly_the_same(
    sections: list[dict[str, Any]], model: nn.Module, images: Tensor, dataset: nncf.Dataset
) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    _, compressed = compress(model, dataset, *sections)
    assert relative(outputs(compressed, images), outputs(model, images)) < 0.25
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert compressed is not model
    assert compressed.training
    assert all(module.training for module in compressed.modules() if not isinstance(module, HookStorage))


def test_both_sections_quantize_the_chain(model: nn.Module, dataset: nncf.Dataset) -> None:
    controller, compressed = compress(model, dataset, LOWRANK, QUANTIZATION)
    assert isinstance(compressed.conv, nn.Sequential)
    quantization = controller.statistics().quantization
    assert quantization is not None
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in compressed.modules())
    assert quantization.quantized_layers == quantization.layers == layers
    assert quantization.bits == (8,)


def test_two_sections_equal_two_configs(model: nn.Module, images: Tensor, dataset: nncf.Dataset) -> None:
    _, at_once = compress(model, dataset, LOWRANK, QUANTIZATION)
    _, first = compress(model, dataset, {**LOWRANK, "decomposers": "int8"})
    _, second = compress(first, dataset, QUANTIZATION)
    torch.testing.assert_close(outputs(second, images), outputs(at_once, images))


@pytest.mark.parametrize(("beside", "chosen"), [([], "auto"), ([QUANTIZATION], "int8")])
def test_a_config_that_quantizes_is_for_int8(
    model: nn.Module, dataset: nncf.Dataset, beside: list[dict[str, Any]], chosen: str
) -> None:
    _, compressed = compress(model, dataset, LOWRANK, *beside)
    assert lowrank_plugin.get_state(compressed)["record"]["settings"]["decomposers"] == chosen


def test_a_single_section_may_stand_without_a_list(model: nn.Module, dataset: nncf.Dataset) -> None:
    _, compressed = lowrank_nncf.create_compressed_model(model, {"compression": LOWRANK}, dataset)
    assert isinstance(compressed.conv, nn.Sequential)


def test_statistics_are_a_table_of_the_layers(model: nn.Module, dataset: nncf.Dataset) -> None:
    controller, _ = compress(model, dataset, LOWRANK, QUANTIZATION)
    text = controller.statistics().to_str()
    for part in ("conv", "Decomposer", "Rank", "MACs", "Parameters", "whole model", "Quantization to 8 bits"):
        assert part in text
    values = controller.statistics().to_dict()
    assert values["lowrank"]["layers"]["conv"]["macs"][1] < values["lowrank"]["layers"]["conv"]["macs"][0]


def test_without_data_from_input_info(model: nn.Module) -> None:
    section = {"algorithm": "lowrank", "ranks": {"conv": [16, 16]}, "decomposers": ["tucker2"], "norm": "frobenius"}
    _, compressed = compress(model, None, section, input_info={"sample_size": [1, 3, 12, 12], "filler": "random"})
    assert [layer.out_channels for layer in compressed.conv] == [16, 16, 32]


def test_inputs_with_keywords() -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 32)

        def forward(self, x: Tensor, *, shift: Tensor) -> Tensor:
            return self.layer(x) + shift

    infos = [{"sample_size": [1, 32], "keyword": "x"}, {"sample_size": [1, 1], "keyword": "shift", "type": "long"}]
    section = {"algorithm": "lowrank", "ranks": {"layer": 8}, "norm": "frobenius"}
    _, compressed = compress(TwoInputs(), None, section, input_info=infos)
    assert [layer.out_features for layer in compressed.layer] == [8, 32]


def test_global_scopes_hold_for_every_section(model: nn.Module, dataset: nncf.Dataset) -> None:
    section = {"algorithm": "lowrank", "ranks": {"stem": 16, "head": 8}, "decomposers": ["svd"]}
    controller, compressed = compress(model, dataset, section, QUANTIZATION, ignored_scopes=["{re}^conv"])
    assert isinstance(compressed.conv, nn.Conv2d)
    assert isinstance(compressed.head, nn.Sequential)
    quantization = controller.statistics().quantization
    assert quantization is not None
    assert quantization.layers - quantization.quantized_layers == 1


def test_quantization_of_target_scopes_only(model: nn.Module, dataset: nncf.Dataset) -> None:
    controller, _ = compress(model, dataset, {**QUANTIZATION, "target_scopes": "conv"})
    quantization = controller.statistics().quantization
    assert quantization is not None
    assert quantization.quantized_layers == 1


def test_core_messages_go_to_nncf(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("lowrank_plugin")
    nncf.nncf_logger.addHandler(caplog.handler)
    try:
        with nncf_logging():
            logger.info("Inside.")
        logger.info("Outside.")
    finally:
        nncf.nncf_logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records] == ["Inside."]
    assert logger.propagate
    assert not logger.handlers


def test_layer_with_nan_stays_dense_with_a_reason(model: nn.Module, dataset: nncf.Dataset) -> None:
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] = float("nan")
    section = {"algorithm": "lowrank", "ranks": {"stem": 16}, "decomposers": ["svd"]}
    controller, compressed = compress(model, dataset, section)
    assert isinstance(compressed.conv, nn.Conv2d)
    assert "NaN" in controller.statistics().to_str()


@pytest.mark.parametrize("sections", SECTIONS.values(), ids=SECTIONS)
@pytest.mark.parametrize("ending", [".xml", ".onnx"])
def test_exported_model_computes_the_same(
    sections: list[dict[str, Any]], ending: str, model: nn.Module, images: Tensor, dataset: nncf.Dataset, tmp_path: Path
) -> None:
    controller, compressed = compress(model, dataset, *sections)
    path = tmp_path / f"model{ending}"
    controller.export_model(path)
    network = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = torch.from_numpy(np.array(network([images[:8].numpy()])[0]))
    assert relative(found, outputs(compressed, images[:8])) < (1e-4 if sections == [LOWRANK] else 0.03)


def test_export_to_an_unknown_format(model: nn.Module, dataset: nncf.Dataset, tmp_path: Path) -> None:
    controller, _ = compress(model, dataset, LOWRANK)
    with pytest.raises(nncf.ValidationError, match=r"model.pb.*\.xml, \.onnx"):
        controller.export_model(tmp_path / "model.pb")


def test_strip(model: nn.Module, images: Tensor, dataset: nncf.Dataset) -> None:
    controller, compressed = compress(model, dataset, LOWRANK)
    stripped = controller.strip()
    assert stripped is not compressed
    assert torch.equal(outputs(stripped, images), outputs(compressed, images))
    assert controller.strip(do_copy=False) is compressed
