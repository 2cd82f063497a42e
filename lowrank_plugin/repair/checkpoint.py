# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Blocks that are distilled already, kept in a file, so that an interrupted distillation goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from lowrank_plugin.errors import PlanError
from lowrank_plugin.support.files import read_whole, write_whole

Errors = dict[str, tuple[float, float]]

_KEY = "lowrank_distillation"


class Notebook:
    """The weights of all chains and the blocks that are done, in one file.

    :param path: of the file; None keeps none.
    :param model: the network with chains.
    :param chains: the names of the chains.
    :param key: says which network, plan and data the file belongs to.
    """

    def __init__(self, path: str | None, model: nn.Module, chains: Sequence[str], key: str) -> None:
        self._path, self._model, self._chains, self._key = None if path is None else Path(path), model, chains, key

    def read(self) -> Errors:
        """Put the weights in place.

        :return: the errors of the blocks that are done, before and after; empty where there is no file yet.
        :raises PlanError: where the file is damaged, or of another network, plan or data.
        """
        if self._path is None or not self._path.exists():
            return {}
        start = f"Cannot read the distillation's checkpoint {str(self._path)!r}"
        notes, weights = read_whole(
            self._path, _KEY, lambda cause: PlanError(f"{start}: {cause}. Delete it to start anew.")
        )
        if notes.get("key") != self._key:
            msg = (
                f"The distillation's checkpoint {str(self._path)!r} is of another network, plan, data or settings. "
                "Delete it, or name another file."
            )
            raise PlanError(msg)
        for name, parameter in self._parameters().items():
            parameter.data.copy_(weights[name])
        return {name: (before, after) for name, (before, after) in notes["blocks"].items()}

    def write(self, errors: Errors) -> None:
        """Keep the weights as they are now.

        :param errors: of the blocks that are done.
        :raises PlanError: where the file cannot be written; what was there before is still there.
        """
        if self._path is None:
            return
        notes = {_KEY: json.dumps({"key": self._key, "blocks": errors})}
        try:
            write_whole(self._path, self._parameters(), notes)
        except (OSError, SafetensorError) as error:
            msg = f"Cannot write the distillation's checkpoint {str(self._path)!r}. {type(error).__name__}: {error}"
            raise PlanError(msg) from error

    def _parameters(self) -> dict[str, Tensor]:
        return {
            f"{chain}.{name}": parameter
            for chain in self._chains
            for name, parameter in self._model.get_submodule(chain).named_parameters()
        }
