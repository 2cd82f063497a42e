# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Low-rank compression as an algorithm of NNCF 2: what builds it into a network, and its controller."""

from __future__ import annotations

import copy
import logging

import nncf
from nncf.api.compression import CompressionStage
from nncf.common.schedulers import StubCompressionScheduler
from nncf.torch.algo_selector import PT_COMPRESSION_ALGORITHMS, ZeroCompressionLoss
from nncf.torch.compression_method_api import PTCompressionAlgorithmBuilder, PTCompressionAlgorithmController
from nncf.torch.graph.transformations.layout import PTTransformationLayout
from nncf.torch.nncf_network import NNCFNetwork
from nncf.torch.utils import get_model_device
from torch import nn

import lowrank_plugin
from lowrank_nncf.errors import ConfigurationError, ModelError, as_nncf_errors
from lowrank_nncf.logs import nncf_logging, progress
from lowrank_nncf.nncf2.config import NAME, section_of
from lowrank_nncf.nncf2.data import calibration_data, evaluation, model_input
from lowrank_nncf.nncf2.network import unwrapped
from lowrank_nncf.nncf2.scopes import module_names, operations, within
from lowrank_nncf.nncf2.statistics import Statistics
from lowrank_plugin.host import Json, JsonObject, Report, listed_scopes

_LOGGER = logging.getLogger(__name__)


class LowRankController(PTCompressionAlgorithmController):
    """Goes with a compressed model. There is nothing to schedule and no loss: the layers are what they are.

    :param target_model: the compressed model.
    :param report: what was done to it.
    """

    def __init__(self, target_model: NNCFNetwork, report: Report) -> None:
        super().__init__(target_model)
        self._loss = ZeroCompressionLoss(get_model_device(target_model))
        self._scheduler = StubCompressionScheduler()
        self._report = report

    @property
    def loss(self) -> ZeroCompressionLoss:
        """Zero."""
        return self._loss

    @property
    def scheduler(self) -> StubCompressionScheduler:
        """Does nothing."""
        return self._scheduler

    def compression_stage(self) -> CompressionStage:
        """Fully compressed from the start."""
        return CompressionStage.FULLY_COMPRESSED

    def statistics(self, quickly_collected_only: bool = False) -> Statistics:
        """Return the report as a part of NNCF's statistics.

        :param quickly_collected_only: all values are at hand.
        """
        statistics = Statistics()
        statistics.register(self.name, self._report)
        return statistics


class LowRankBuilder(PTCompressionAlgorithmBuilder):
    """Replaces the layers of a network by chains, with ranks from the calibration data or from a compression state.

    Users call NNCF's own functions, after ``import lowrank_nncf``:

    >>> import torch
    >>> section = {"algorithm": "lowrank", "ranks": {"0": 4}, "decomposers": ["svd"]}
    >>> config = nncf.NNCFConfig.from_dict({"input_info": {"sample_size": [1, 8]}, "compression": section})
    >>> loader = torch.utils.data.DataLoader(list(zip(torch.rand(32, 8), torch.zeros(32))), batch_size=8)
    >>> config = nncf.torch.register_default_init_args(config, loader)
    >>> model = nn.Sequential(nn.Linear(8, 8))
    >>> controller, compressed = nncf.torch.create_compressed_model(model, config, dump_graphs=False)
    >>> [stage.weight.shape for stage in compressed[0]]
    [torch.Size([4, 8]), torch.Size([8, 4])]
    >>> controller.statistics().lowrank.to_dict()["norm"]
    'covariance'

    :param config: the config, checked here once more because one can be made without ``NNCFConfig.from_dict``.
    :param should_init: whether NNCF is going to initialise its algorithms; chains are made in any case.
    """

    def __init__(self, config: nncf.NNCFConfig, should_init: bool = True) -> None:
        self._section = section_of(config)
        super().__init__(config, should_init)
        # every later builder appends scopes of its own to the config's list
        self.ignored_scopes: str | list[str] | None = copy.copy(config.get("ignored_scopes"))
        self._state: Json | None = None

    def _get_algo_specific_config_section(self) -> Json:
        return {key: value for key, value in self._section.items() if not key.endswith("_scopes")}

    def get_transformation_layout(self, model: NNCFNetwork) -> PTTransformationLayout:
        """Replace the layers at once, so that the algorithms that follow see the new ones.

        :param model: the network, changed in place.
        :return: an empty layout.
        :raises nncf.ValidationError: where the section, the data or the state cannot be used; the network is unwrapped
            then and as it was before.
        """
        section = self._with_scopes(model)
        example = self._example(model)
        with unwrapped(model, self.ignored_scopes) as plain, as_nncf_errors(), nncf_logging():
            if self._state is None:
                self._decompose(plain, section, example)
            else:
                lowrank_plugin.restore(plain, self._state, inplace=True)
            self._state = lowrank_plugin.get_state(plain)
        return PTTransformationLayout()

    @staticmethod
    def _example(model: NNCFNetwork) -> object:
        if model.nncf._user_dummy_forward_fn is not None:
            # 'input_info' then describes tensors that the function puts into whatever the model takes
            return None
        return model_input(model, *model.nncf.input_infos.get_forward_inputs(get_model_device(model)))

    def _with_scopes(self, model: NNCFNetwork) -> Json:
        section, layers = dict(self._section), operations(model)
        for key, from_config in (("ignored_scopes", self.ignored_scopes), ("target_scopes", self.target_scopes)):
            own = module_names(listed_scopes(section.get(key)), layers)
            # what the config's scopes name among the new layers is for the other algorithms
            both = own + [name for scope in listed_scopes(from_config) for name in within(scope, layers)]
            if both or from_config is not None:
                section[key] = both
        return section

    def _decompose(self, model: nn.Module, section: JsonObject, example: object) -> None:
        data = calibration_data(self.config, model)
        if data is None and section.get("norm") not in (None, "frobenius"):
            msg = (
                f"The norm {section['norm']!r} needs calibration data. Call nncf.torch.register_default_init_args("
                "nncf_config, loader) before create_compressed_model, or set 'norm' to 'frobenius'."
            )
            raise ConfigurationError(msg)
        if data is None:
            _LOGGER.warning(
                "No calibration data: the layers are decomposed in the plain norm, which costs much more accuracy. "
                "Call nncf.torch.register_default_init_args(nncf_config, loader) before create_compressed_model."
            )
        made = lowrank_plugin.decompose(
            model,
            data,
            example_input=example,
            inplace=True,
            validation_fn=evaluation(self.config, section),
            progress=progress,
            **section,
        )
        if made is not model:
            msg = "The model is itself a layer, which cannot be replaced in place. Put it into a module of your own."
            raise ModelError(msg)

    def initialize(self, model: NNCFNetwork) -> None:
        """Nothing is left to do: the chains came with their weights."""

    def _load_state_without_name(self, state_without_name: Json) -> None:
        self._state = state_without_name

    def _get_state_without_name(self) -> Json:
        return self._state or {}

    def _build_controller(self, model: NNCFNetwork) -> LowRankController:
        return LowRankController(model, lowrank_plugin.report(model))


def register_algorithm() -> None:
    """Enter the builder into NNCF's registry."""
    PT_COMPRESSION_ALGORITHMS.register(NAME)(LowRankBuilder)
