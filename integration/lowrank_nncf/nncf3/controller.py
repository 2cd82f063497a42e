# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The controller: what can be asked of a compressed model and done with it."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import nncf
import torch
from nncf.torch.function_hook import is_wrapped
from torch import Tensor, nn

from lowrank_hooks import CompressionContext
from lowrank_nncf.errors import ConfigurationError
from lowrank_nncf.nncf3.inputs import example_of
from lowrank_nncf.nncf3.statistics import Statistics


class CompressionController:
    """Goes with a compressed model, as in NNCF 2.

    :param model: the compressed model.
    :param statistics: what was done to it.
    :param context: what the config said for all sections.
    """

    def __init__(self, model: nn.Module, statistics: Statistics, context: CompressionContext) -> None:
        self.model = model
        self._statistics = statistics
        self._context = context

    def statistics(self, quickly_collected_only: bool = False) -> Statistics:
        """Return what was done to the model; ``.to_str()`` of it is a table of the layers.

        :param quickly_collected_only: taken for likeness with NNCF 2; all values are at hand.
        """
        return self._statistics

    def strip(self, do_copy: bool = True) -> nn.Module:
        """Return the model without NNCF's own modules: quantizers become those of torch.

        :param do_copy: whether to leave the model of this controller as it is.
        :raises nncf.InstallationError: where NNCF lacks the package torchao, which it needs for this.
        """
        if not is_wrapped(self.model):
            return copy.deepcopy(self.model) if do_copy else self.model
        try:
            return nncf.strip(self.model, do_copy=do_copy, example_input=example_of(self._context))
        except ModuleNotFoundError as error:
            msg = f"NNCF needs the package {error.name!r} to strip a model. Install it: pip install {error.name}."
            raise nncf.InstallationError(msg) from error

    def export_model(self, save_path: str | Path) -> None:
        """Write the model to a file for deployment.

        :param save_path: ends in ``.xml`` for OpenVINO or in ``.onnx`` for ONNX; an existing file is replaced.
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
            writers[path.suffix](copy.deepcopy(self.model).eval(), example_of(self._context), path)


def _write_openvino(model: nn.Module, example: Any, path: Path) -> None:
    import openvino

    openvino.save_model(openvino.convert_model(model, example_input=example), path, compress_to_fp16=False)


def _write_onnx(model: nn.Module, example: Any, path: Path) -> None:
    arguments: tuple[Any, ...] = (example,) if isinstance(example, Tensor) else tuple(example)
    keywords = example if isinstance(example, dict) else None
    # The exporter for torch.export graphs cannot take NNCF's quantizers.
    torch.onnx.export(model, () if keywords else arguments, path, kwargs=keywords, dynamo=False)
