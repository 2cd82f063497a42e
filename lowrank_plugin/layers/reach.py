# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Whether a chain in a layer's place would be called: tried before anything is solved, not believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lowrank_plugin.data.batches import call, evaluating
from lowrank_plugin.errors import LowRankError
from lowrank_plugin.layers.replacement import exchange
from lowrank_plugin.layers.survey import Layer

PAST = "it is reached past the module tree (a closure or a bound method), where nothing can be put in its place"


def out_of_reach(network: nn.Module, layers: Mapping[str, Layer], example: object) -> dict[str, str]:
    """Put something into the place of every layer, run the network, and see whether it is called as the layer was.

    >>> from lowrank_plugin.layers.survey import survey
    >>> from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
    >>> from lowrank_plugin.settings import Settings
    >>> import torch
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.seen, self.hidden = nn.Linear(4, 4), nn.Linear(4, 4)
    ...         self.last = lambda x, layer=self.hidden: layer(x)
    ...     def forward(self, x):
    ...         return self.last(self.seen(x))
    >>> network, x = Net(), torch.ones(1, 4)
    >>> adapters = manager().registered(LAYER_ADAPTERS)
    >>> list(out_of_reach(network, survey(network, x, Settings(), adapters).layers, x))
    ['hidden']

    :param network: the one that chains are to be put into; it is left as it was.
    :param layers: its layers by name.
    :param example: what they were surveyed with.
    :return: for each layer that no chain can take the place of, the reason.
    """
    return _tried(network, layers, example, [name for name in layers if name])


def _tried(network: nn.Module, layers: Mapping[str, Layer], example: object, names: Sequence[str]) -> dict[str, str]:
    markers = {name: _Marker(network.get_submodule(name)) for name in names}
    try:
        _run(network, list(markers.values()), example)
    except (LowRankError, AttributeError, TypeError) as error:
        if len(names) == 1:
            return {names[0]: f"the model does not run with a chain in its place: {error}"}
        half = len(names) // 2
        return {
            name: reason
            for part in (names[:half], names[half:])
            for name, reason in _tried(network, layers, example, part).items()
        }
    return {name: PAST for name, marker in markers.items() if marker.calls != len(layers[name].calls)}


def _run(network: nn.Module, markers: Sequence[_Marker], example: object) -> None:
    with evaluating(network):
        try:
            exchange(network, {marker[0]: marker for marker in markers})
            call(network, example)
        finally:
            exchange(network, {marker: marker[0] for marker in markers})


class _Marker(nn.Sequential):
    """A chain of one stage, the layer itself, that counts its calls without a hook: modules with hooks run otherwise.

    :param layer: the layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.train(layer.training)
        self.calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer."""
        self.calls += 1
        return self[0](*args, **kwargs)
