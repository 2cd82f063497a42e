# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A network that NNCF has wrapped, for a while without its wrapping."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nncf.torch.layers import NNCF_MODULES_DICT
from nncf.torch.nncf_network import NNCFNetwork, NNCFNetworkInterface
from nncf.torch.utils import training_mode_switcher
from torch import nn

from lowrank_plugin.host import replace

_ADDED = {"_modules": ("pre_ops", "post_ops"), "_buffers": ("nncf_padding_value",)}
"""What NNCF puts into a layer when it takes its place."""


@contextmanager
def unwrapped(network: NNCFNetwork, ignored_scopes: Sequence[str] | None) -> Iterator[nn.Module]:
    """Give the network as the user made it, and wrap and trace it again afterwards.

    The object stays the same, because NNCF and the user hold on to it. Tracing again is what makes NNCF see layers that
    were replaced. After an error the network is left unwrapped, as the user gave it to NNCF.

    >>> from nncf.torch.dynamic_graph.io_handling import FillerInputElement, FillerInputInfo
    >>> info = FillerInputInfo([FillerInputElement([1, 8])])
    >>> network = NNCFNetwork(nn.Sequential(nn.Linear(8, 8)), info)
    >>> with unwrapped(network, None) as plain:
    ...     plain is network, type(plain[0]).__name__
    (True, 'Linear')
    >>> type(network[0]).__name__
    'NNCFLinear'

    :param network: an ``NNCFNetwork`` that no algorithm has changed yet.
    :param ignored_scopes: the scopes that NNCF leaves alone.
    """
    interface = network.nncf
    _unwrap(network, interface)
    yield network
    with training_mode_switcher(network, is_training=False):
        NNCFNetwork(
            network,
            input_info=interface._input_info,
            dummy_forward_fn=interface._user_dummy_forward_fn,
            wrap_inputs_fn=interface._wrap_inputs_fn,
            wrap_outputs_fn=interface._wrap_outputs_fn,
            ignored_scopes=ignored_scopes,
            target_scopes=interface._target_scopes,
            scopes_without_shape_matching=interface._scopes_without_shape_matching,
            replace_modules=interface.replace_modules,
            trace_parameters=interface.trace_parameters,
        )
        network.nncf.get_tracing_context().disable_trace_dynamic_graph()


def _unwrap(network: NNCFNetwork, interface: NNCFNetworkInterface) -> None:
    del network._nncf
    # not by setattr, which NNCF overrides until the class is back
    object.__setattr__(network, "__class__", interface._original_class)
    if interface._original_instance_forward is not None:
        network.__dict__["forward"] = interface._original_instance_forward
    for module in list(network.modules()):
        plain = NNCF_MODULES_DICT.get(type(module))
        if plain is not None:
            replace(network, module, _plain_layer(module, plain))


def _plain_layer(layer: nn.Module, plain: type[nn.Module]) -> nn.Module:
    made = plain.__new__(plain)
    made.__dict__.update(layer.__dict__)
    for store, names in _ADDED.items():
        made.__dict__[store] = {name: value for name, value in layer.__dict__[store].items() if name not in names}
    return made
