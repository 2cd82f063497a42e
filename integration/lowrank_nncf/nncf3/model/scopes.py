# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Scopes: how a config names the parts of a model's graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import nncf
from torch import nn

from lowrank_hooks import CompressionContext
from lowrank_nncf.errors import ConfigurationError, as_nncf_errors
from lowrank_nncf.nncf3.model.inputs import example_of
from lowrank_nncf.nncf3.sections import Scoping
from lowrank_plugin.host import listed_scopes, matches, suggestion


def ignored(model: nn.Module, section: Scoping, context: CompressionContext) -> nncf.IgnoredScope | None:
    """What a section leaves alone, as NNCF wants it: names of operations that are surely in the model.

    :param model: the model that the section is applied to.
    :param section: with the keys ``"ignored_scopes"``, ``"target_scopes"`` and ``"validate_scopes"``, or without.
    :param context: what the config says for all sections.
    :raises ConfigurationError: for a scope that names nothing, unless ``"validate_scopes"`` is false.
    """
    left_out, targets = listed_scopes(section.get("ignored_scopes")), listed_scopes(section.get("target_scopes"))
    if not left_out and not targets:
        return None
    strict = section.get("validate_scopes", True)
    graph = nncf.build_graph(model, example_input=example_of(context))
    operations = [node.node_name for node in graph.get_all_nodes() if "/" in node.node_name]
    names = select(left_out, operations, "ignored_scopes", strict)
    if targets:
        names |= set(operations) - select(targets, operations, "target_scopes", strict)
    return nncf.IgnoredScope(names=sorted(names)) if names else None


def select(scopes: Iterable[str], operations: Sequence[str], where: str, strict: bool = True) -> set[str]:
    """Return the operations of NNCF's graph that scopes name.

    A scope is an operation, a module and with it all that is inside, or ``{re}`` and a pattern for either. Since a
    chain of layers takes the place of the layer it was made from, the name of a module still finds it afterwards.

    >>> operations = ["layer1/0/conv/0/conv2d/0", "layer1/0/conv/1/conv2d/0", "fc/linear/0"]
    >>> sorted(select(["layer1.0.conv"], operations, "ignored_scopes"))
    ['layer1/0/conv/0/conv2d/0', 'layer1/0/conv/1/conv2d/0']
    >>> select(["{re}linear"], operations, "ignored_scopes")
    {'fc/linear/0'}

    :param scopes: what the config names.
    :param operations: the names of all operations, as in nncf.build_graph.
    :param where: the config's key, for messages.
    :param strict: whether a scope that names nothing is an error.
    :raises ConfigurationError: for a scope that names nothing.
    """
    selected: set[str] = set()
    for scope in scopes:
        with as_nncf_errors():
            found = {name for name in operations if matches(name.replace("/", "."), scope)}
        if not found and strict:
            modules = {name.rsplit("/", 2)[0].replace("/", ".") for name in operations}
            msg = (
                f"Scope {scope!r} in {where} matches no operation of the model. "
                f"{suggestion(scope, [*operations, *modules])}nncf.build_graph lists the names of operations."
            )
            raise ConfigurationError(msg)
        selected |= found
    return selected
