# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""NNCF 2's scopes, which name operations of the traced graph, as names of modules."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nncf.common.scopes import matches_any
from nncf.torch.nncf_network import NNCFNetwork
from torch import Tensor, nn

from lowrank_nncf.errors import as_nncf_errors
from lowrank_plugin.host import matches


def operations(network: NNCFNetwork) -> dict[str, str]:
    """The operations of an ``NNCFNetwork`` by the names of the layers with a kernel that they run in.

    :param network: the network.
    """
    nodes = network.nncf.get_original_graph().get_all_nodes()
    by_module = {module_name(node.layer_name): node.node_name for node in nodes if node.layer_name}
    return {name: operation for name, operation in by_module.items() if _has_kernel(network.get_submodule(name))}


def module_name(scope: str) -> str:
    """The name of the module that a scope lies in.

    >>> module_name("Net/Sequential[layer1]/Block[0]/NNCFConv2d[conv1]/conv2d_0")
    'layer1.0.conv1'

    :param scope: a scope of NNCF 2.
    """
    return ".".join(re.findall(r"\[([^\]]*)\]", scope))


def module_names(scopes: Iterable[str], operations: dict[str, str]) -> list[str]:
    """Put the names of modules in the place of NNCF's scopes.

    >>> operations = {"layer1.conv": "Net/Block[layer1]/NNCFConv2d[conv]/conv2d_0", "fc": "Net/NNCFLinear[fc]/linear_0"}
    >>> module_names(["layer1", "{re}^fc$", "Net/NNCFLinear[fc]/linear_0", "{re}NNCFConv2d"], operations)
    ['layer1', '{re}^fc$', 'fc', 'layer1.conv']

    :param scopes: names of modules or patterns of them, as the core knows them, or scopes of NNCF 2.
    :param operations: the operations by module.
    :return: what the core knows is left as it is, and so is what names nothing.
    """
    found: list[str] = []
    for scope in scopes:
        with as_nncf_errors():
            known = any(matches(name, scope) for name in operations)
        named = [] if known else within(scope, operations)
        found += named or [scope]
    return found


def within(scope: str, operations: dict[str, str]) -> list[str]:
    """The modules whose operations a scope of NNCF 2 names.

    >>> within("{re}NNCFConv2d", {"conv": "Net/NNCFConv2d[conv]/conv2d_0", "fc": "Net/NNCFLinear[fc]/linear_0"})
    ['conv']

    :param scope: the scope.
    :param operations: the operations by module.
    """
    return [name for name, operation in operations.items() if matches_any(operation, scope)]


def _has_kernel(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() >= 2
