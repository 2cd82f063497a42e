# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The algorithms that a config may name; each is a function from a model to another model."""

from __future__ import annotations

from lowrank_hooks import CompressionAlgorithmRecord
from lowrank_nncf.errors import PluginError, as_nncf_errors
from lowrank_nncf.nncf3.algorithms.lowrank import LOWRANK
from lowrank_nncf.nncf3.algorithms.pruning import MAGNITUDE_SPARSITY, RB_SPARSITY
from lowrank_nncf.nncf3.algorithms.quantization import QUANTIZATION
from lowrank_plugin.plugins import COMPRESSION_ALGORITHMS, DISABLE_VARIABLE, OWN_DISTRIBUTION, manager

ALGORITHMS: dict[str, CompressionAlgorithmRecord] = {
    algorithm.name: algorithm for algorithm in (LOWRANK, MAGNITUDE_SPARSITY, RB_SPARSITY, QUANTIZATION)
}
"""The algorithms that come with this package, by name."""


def algorithms() -> dict[str, CompressionAlgorithmRecord]:
    """All algorithms that a config may name: those of this package, and those of installed plugins.

    >>> list(algorithms())[:4]
    ['lowrank', 'magnitude_sparsity', 'rb_sparsity', 'quantization']

    :return: the algorithms by name.
    :raises nncf.InstallationError: where a plugin offers a name that is taken.
    """
    found = dict(ALGORITHMS)
    with as_nncf_errors():
        offered = manager().registered(COMPRESSION_ALGORITHMS)
    for name, entry in offered.items():
        if name in found:
            msg = (
                f"Two plugins offer a compression algorithm named {name!r}: {OWN_DISTRIBUTION} and "
                f"{entry.distribution}. Uninstall the second, or name it in the environment variable "
                f"{DISABLE_VARIABLE}."
            )
            raise PluginError(msg)
        found[name] = entry.record
    return found
