# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""NNCF's scope syntax over module names: an exact name, the name of a containing module, or ``{re}`` and a pattern."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.support.messages import suggestion

REGEX_PREFIX = "{re}"


def matches(name: str, scope: str) -> bool:
    """Tell whether a scope covers a module name. Slashes may stand for dots, as in NNCF's node names.

    >>> matches("layer1.0.conv1", "layer1"), matches("layer1.0.conv1", "layer1/0/conv1")
    (True, True)
    >>> matches("layer1.0.conv1", "{re}conv[12]$"), matches("layer10.conv", "layer1")
    (True, False)

    :param name: a dotted module name.
    :param scope: the scope.
    :raises ConfigurationError: where the pattern is not a regular expression.
    """
    if scope.startswith(REGEX_PREFIX):
        try:
            return re.search(scope.removeprefix(REGEX_PREFIX), name) is not None
        except re.error as error:
            msg = f"Invalid pattern {scope!r}: {error}."
            raise ConfigurationError(msg) from error
    scope = scope.replace("/", ".")
    return name == scope or name.startswith(scope + ".")


def check_scopes(scopes: Iterable[str], names: Collection[str], key: str) -> None:
    """Refuse scopes that cover no layer.

    :param scopes: the scopes a user gave.
    :param names: the names of all layers.
    :param key: the setting they came from.
    :raises ConfigurationError: naming the first such scope and the nearest layer name.
    """
    for scope in scopes:
        if not any(matches(name, scope) for name in names):
            shown = ", ".join(sorted(names)[:8]) or "none"
            msg = f"{scope!r} in {key!r} matches no layer of the model. {suggestion(scope, names)}Layers: {shown}" + (
                ", ..." if len(names) > 8 else "."
            )
            raise ConfigurationError(msg)
