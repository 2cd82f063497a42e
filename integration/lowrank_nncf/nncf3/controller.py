# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The controller: what can be asked of a compressed model and done with it."""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path

import nncf
import torch
from nncf.torch.quantization.layers import BaseQuantizer, QuantizerExportMode
from torch import nn

from lowrank_hooks import CompressionContext
from lowrank_nncf.errors import ConfigurationError
from lowrank_nncf.nncf3.algorithms.pruners import pruner_of
from lowrank_nncf.nncf3.model.inputs import example_of
from lowrank_nncf.nncf3.model.wrapping import bake_pruning, hooks
from lowrank_nncf.nncf3.sections import Section
from lowrank_nncf.nncf3.state import State, applied_to, get_state
from lowrank_nncf.nncf3.statistics import Statistics
from lowrank_nncf.nncf3.training import CompressionLoss, CompressionScheduler, CompressionStage


class CompressionController:
    """Goes with a compressed model, as in NNCF 2.

    >>> import lowrank_nncf
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.Linear(8, 8)
    ...     def forward(self, x):
    ...         return self.layer(x)
    >>> params = {"schedule": "multistep", "multistep_steps": [1], "multistep_sparsity_levels": [0.25, 0.75]}
    >>> section = {"algorithm": "magnitude_sparsity", "params": params}
    >>> config = {"input_info": {"sample_size": [1, 8]}, "compression": section}
    >>> controller, compressed = lowrank_nncf.create_compressed_model(Net(), config)
    >>> optimizer = torch.optim.SGD(compressed.parameters(), lr=0.1)
    >>> for epoch in range(2):
    ...     controller.scheduler.epoch_step()
    ...     for inputs in torch.rand(3, 4, 8):
    ...         controller.scheduler.step()
    ...         loss = compressed(inputs).square().mean() + controller.loss()
    ...         loss.backward()
    ...         optimizer.step()
    ...     controller.compression_stage().name, controller.statistics().pruning.sparsity
    ('PARTIALLY_COMPRESSED', 0.25)
    ('FULLY_COMPRESSED', 0.75)
    >>> controller.strip().layer.weight.count_nonzero()
    tensor(16)

    :param model: the compressed model.
    :param config: what it was compressed with.
    :param context: what the config said for all sections.
    """

    def __init__(self, model: nn.Module, config: Section, context: CompressionContext) -> None:
        self.model = model
        self._config, self._context = config, context
        sections = {each.section["algorithm"]: each.section for each in applied_to(model)}
        pruner = pruner_of(model, sections)
        self.loss = CompressionLoss(pruner)
        self.scheduler = CompressionScheduler(pruner)

    def statistics(self, quickly_collected_only: bool = False) -> Statistics:
        """Return what was done to the model and how it is now; ``.to_str()`` of it is a table of the layers.

        :param quickly_collected_only: taken for likeness with NNCF 2; all values are at hand.
        """
        by_name = {each.section["algorithm"]: each.statistics for each in applied_to(self.model)}
        return Statistics.of(self.model, by_name)

    def compression_stage(self) -> CompressionStage:
        """How far the compression has come: not fully while the level of pruning still rises."""
        stage = self.scheduler.stage()
        alone = len(applied_to(self.model)) == 1
        return stage if alone or stage is CompressionStage.FULLY_COMPRESSED else CompressionStage.PARTIALLY_COMPRESSED

    def get_compression_state(self) -> State:
        """Return everything but the weights that :func:`lowrank_nncf.load_from_state` needs: one JSON value.

        :raises nncf.ValidationError: where an algorithm of a third party left statistics that are no JSON values.
        """
        return get_state(self.model, self._config, self.scheduler.get_state())

    def strip(self, do_copy: bool = True, strip_format: nncf.StripFormat = nncf.StripFormat.NATIVE) -> nn.Module:
        """Return the model without NNCF's own modules: masks are baked in, quantizers become those of torch.

        :param do_copy: whether to leave the model of this controller as it is.
        :param strip_format: for a quantized model ``NATIVE`` only.
        :raises nncf.InstallationError: where NNCF lacks the package torchao, which it needs to strip quantizers.
        :raises nncf.ValidationError: for a format that NNCF cannot strip quantizers to.
        """
        quantized = next(hooks(self.model, (BaseQuantizer,)), None) is not None
        if quantized:
            _check_strip(strip_format)
        stripped = bake_pruning(self.model, inplace=not do_copy)
        if quantized:
            stripped = nncf.strip(stripped, do_copy=False, example_input=example_of(self._context))
        return stripped

    def export_model(self, save_path: str | Path, standard_ops: bool = False) -> None:
        """Write the model to a file for deployment.

        >>> import tempfile, lowrank_nncf
        >>> section = {"algorithm": "lowrank", "ranks": {"0": 4}, "norm": "frobenius"}
        >>> config = {"input_info": {"sample_size": [1, 8]}, "compression": section}
        >>> controller, _ = lowrank_nncf.create_compressed_model(nn.Sequential(nn.Linear(8, 8)), config)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     controller.export_model(Path(folder) / "model.xml")
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['model.bin', 'model.xml']

        :param save_path: ends in ``.xml`` for OpenVINO or in ``.onnx`` for ONNX; an existing file is replaced.
        :param standard_ops: write quantizers to ``.onnx`` as QuantizeLinear and DequantizeLinear, which ONNX Runtime
            needs, and not as FakeQuantize, which is OpenVINO's own.
        :raises nncf.ValidationError: for another ending.
        """
        path = Path(save_path)
        writers = {".xml": _write_openvino, ".onnx": _write_onnx}
        if path.suffix not in writers:
            msg = f"Cannot export to {str(path)!r}: expected a name that ends in one of {', '.join(writers)}."
            raise ConfigurationError(msg)
        with warnings.catch_warnings():
            # Both formats are traced with torch.jit, which torch has deprecated and which remarks on NNCF's quantizers.
            for category in (FutureWarning, DeprecationWarning, torch.jit.TracerWarning):
                warnings.simplefilter("ignore", category)
            writers[path.suffix](_exportable(self.model, standard_ops), example_of(self._context), path)


def _check_strip(strip_format: nncf.StripFormat) -> None:
    if strip_format is not nncf.StripFormat.NATIVE:
        msg = (
            f"A model with quantized activations cannot be stripped to the format {strip_format.name}, which NNCF has "
            "for compressed weights only. Use StripFormat.NATIVE, or export_model."
        )
        raise ConfigurationError(msg)
    try:
        import_module("nncf.torch.function_hook.strip")
    except ModuleNotFoundError as error:
        msg = f"NNCF needs the package {error.name!r} to strip a model. Install it: pip install {error.name}."
        raise nncf.InstallationError(msg) from error


def _exportable(model: nn.Module, standard_ops: bool) -> nn.Module:
    model = bake_pruning(model).eval()
    if standard_ops:
        for _, quantizer in hooks(model, (BaseQuantizer,)):
            quantizer.set_export_mode(QuantizerExportMode.ONNX_QUANTIZE_DEQUANTIZE_PAIRS)
    return model


def _write_openvino(model: nn.Module, example: object, path: Path) -> None:
    import openvino

    openvino.save_model(openvino.convert_model(model, example_input=example), path, compress_to_fp16=False)


def _write_onnx(model: nn.Module, example: object, path: Path) -> None:
    arguments = tuple(example) if isinstance(example, tuple | list) else (example,)
    keywords = example if isinstance(example, dict) else None
    # The exporter for torch.export graphs cannot take NNCF's quantizers.
    torch.onnx.export(model, () if keywords else arguments, path, kwargs=keywords, dynamo=False)
