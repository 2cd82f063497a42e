# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Tests that every decomposer and layer adapter should pass, for those who write one.

They need pytest; nothing else imports this package.

.. code-block:: python

    from lowrank_hooks.testing import DecomposerConformance

    class TestMine(DecomposerConformance):
        decomposer = MyDecomposer()
"""

import pytest

# before the import of the checks, so that their plain asserts explain themselves outside of a test module too
pytest.register_assert_rewrite(*(f"lowrank_hooks.testing.{name}" for name in ("adapters", "base", "decomposers")))

from lowrank_hooks.testing.adapters import LayerAdapterConformance  # noqa: E402
from lowrank_hooks.testing.decomposers import DecomposerConformance  # noqa: E402
from lowrank_hooks.testing.problems import Case, cases, make_problem  # noqa: E402

__all__ = ["Case", "DecomposerConformance", "LayerAdapterConformance", "cases", "make_problem"]
