# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Calibration data, an example input and the judge of accuracy, from where users of NNCF 2 already give them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import nncf
from nncf.config.structures import ModelEvaluationArgs
from nncf.torch.dynamic_graph.io_handling import EXTRA_STRUCTS_WITH_DATALOADERS
from nncf.torch.initialization import wrap_dataloader_for_init
from torch import nn

from lowrank_nncf.errors import ConfigurationError
from lowrank_plugin.host import JsonObject, needs_validation


def calibration_data(config: nncf.NNCFConfig, model: nn.Module) -> nncf.Dataset | None:
    """The data that ``register_default_init_args`` put into a config, or None.

    :param config: the config; the first of its structures that has a data loader gives the batches.
    :param model: the network, to tell which inputs go to which argument.
    """
    for struct in config.get_all_extra_structs():
        data = getattr(struct, "data_loader", None)
        if data is not None and isinstance(struct, tuple(EXTRA_STRUCTS_WITH_DATALOADERS)):
            loader = wrap_dataloader_for_init(data)
            return nncf.Dataset(loader, lambda item, loader=loader: model_input(model, *loader.get_inputs(item)))
    return None


def evaluation(config: nncf.NNCFConfig, section: JsonObject) -> Callable[[nn.Module], float] | None:
    """The function that judges networks for the budget ``"accuracy_drop"``, or None where another budget is set.

    :param config: the config; its ``ModelEvaluationArgs`` hold the function, which takes a model.
    :param section: the ``"lowrank"`` section.
    :raises ConfigurationError: where there is none.
    """
    if not needs_validation(section.get("budget")):
        return None
    if not config.has_extra_struct(ModelEvaluationArgs):
        msg = (
            'The budget "accuracy_drop" needs a function that takes a model and returns its quality as a number, '
            "higher is better. Give it as nncf.torch.register_default_init_args(nncf_config, loader, "
            "model_eval_fn=function)."
        )
        raise ConfigurationError(msg)
    judge: Callable[[nn.Module], float] = config.get_extra_struct(ModelEvaluationArgs).eval_fn
    return judge


def model_input(
    model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> tuple[object, ...] | dict[str, object]:
    """Positional and keyword arguments as one value that the core can pass to the model.

    >>> model_input(nn.Linear(2, 2), (1,), {})
    (1,)

    :param model: the network.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    :return: a tuple of positional arguments, or a dictionary of keyword arguments where there are any.
    """
    return inspect.signature(model.forward).bind(*args, **kwargs).arguments if kwargs else args
