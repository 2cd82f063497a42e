# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Parts of messages: names that were meant, and lists of names."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from itertools import islice


def suggestion(name: object, choices: Iterable[str]) -> str:
    """Return ``"Did you mean 'x'? "`` for the choice nearest to a mistyped name, or an empty string.

    >>> suggestion("tuker2", ["svd", "tucker2"])
    "Did you mean 'tucker2'? "

    :param name: what the user wrote.
    :param choices: what could have been meant.
    """
    near = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}? " if near else ""


def listed(names: Collection[str]) -> str:
    """Names for a message: the first three, and how many more there are.

    >>> listed(["conv1", "conv2", "conv3", "fc"])
    "'conv1', 'conv2', 'conv3' and 1 more"

    :param names: one or more.
    """
    shown = ", ".join(repr(name) for name in islice(names, 3))
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
