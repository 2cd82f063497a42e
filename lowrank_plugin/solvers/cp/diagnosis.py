# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Numbers that tell a sound CP decomposition from a degenerate one."""

from __future__ import annotations

from torch import Tensor

from lowrank_hooks import Factorization
from lowrank_plugin.solvers.cp.sensitivity import Factors, component_norms, congruence, rescale, sensitivity
from lowrank_plugin.solvers.parts.linear_algebra import row_products

DEGENERATE_ENERGY = 10.0
"""Sum of squared component norms over the squared norm of the kernel above which components cancel on a large scale.

Healthy decompositions of trained kernels have 0.3 to 5."""
DEGENERATE_PAIR = (5.0, -0.8)
"""The same where two components are opposed: least energy, and the cosine below which they count as opposed."""


def scaled_sensitivity(factors: Factors, scale: float) -> float:
    """The sensitivity of the factors once the kernel's scale is shared among them.

    >>> import torch
    >>> ones = Factors(*(torch.ones(1, 2, 1, dtype=torch.float64) for _ in range(3)))
    >>> [round(scaled_sensitivity(ones, scale), 6) for scale in (1.0, 8.0)]
    [24.0, 384.0]

    :param factors: of the kernel over ``scale``.
    :param scale: what it was divided by.
    """
    return float(sensitivity(factors).sum()) * scale ** (4 / 3)


def component_energy(factors: Factors, kernel: Tensor) -> float:
    """Sum of squared component norms over the squared norm of the kernel; 0 for a zero kernel.

    >>> import torch
    >>> ones = Factors(*(torch.ones(1, 2, 1, dtype=torch.float64) for _ in range(3)))
    >>> [round(component_energy(ones, kernel * torch.ones(1, 2, 2, 2)), 6) for kernel in (1, 0)]
    [1.0, 0.0]

    :param factors: the decomposition.
    :param kernel: [G, T, S, K].
    """
    total = float(row_products(kernel, kernel).sum())
    return float(component_norms(factors).square().sum()) / total if total > 0 else 0.0


def diagnose(factors: Factors, kernel: Tensor, scale: float = 1.0) -> dict[str, float]:
    """Numbers that tell a sound decomposition from a degenerate one.

    >>> import torch
    >>> ones = torch.ones(1, 2, 1, dtype=torch.float64)
    >>> round(diagnose(Factors(ones, ones, ones), torch.ones(1, 2, 2, 2))["component_energy"], 6)
    1.0

    :param factors: of the kernel over ``scale``.
    :param kernel: the kernel over ``scale``, [G, T, S, K].
    :param scale: what both were divided by.
    :return: component energy (about 1 to 5 in sound ones), sensitivity, largest and smallest component, congruence.
    """
    factors = rescale(factors)
    norms = component_norms(factors) * scale
    return {
        "component_energy": component_energy(factors, kernel),
        "sensitivity": scaled_sensitivity(factors, scale),
        "largest_component": float(norms.amax()),
        "smallest_component": float(norms.amin()),
        "congruence": float(congruence(factors).amin()),
    }


def is_degenerate(statistics: dict[str, float]) -> bool:
    """Whether components are huge and cancel each other, in pairs or many at a time.

    >>> is_degenerate({"component_energy": 4.0, "congruence": -0.9})
    False
    >>> is_degenerate({"component_energy": 6.0, "congruence": -0.9})
    True

    :param statistics: from :func:`diagnose`.
    """
    energy, opposed = DEGENERATE_PAIR
    pair = statistics["component_energy"] > energy and statistics["congruence"] < opposed
    return pair or statistics["component_energy"] > DEGENERATE_ENERGY


def chain_factors(chain: Factorization) -> Factors:
    """The factors of a chain 1x1, depthwise, 1x1, in float64.

    >>> import torch
    >>> from lowrank_hooks import Stage
    >>> stages = Stage(torch.ones(1, 2, 4, 1)), Stage(torch.ones(1, 2, 1, 3), 2), Stage(torch.ones(1, 5, 2, 1))
    >>> [tuple(factor.shape) for factor in chain_factors(Factorization(stages))]
    [(1, 5, 2), (1, 4, 2), (1, 3, 2)]

    :param chain: as :class:`Cpd` makes it.
    :raises ValueError: for any other chain.
    """
    stages = chain.stages
    width = stages[0].weight.shape[1]
    if len(stages) != 3 or [stage.groups for stage in stages] != [1, width, 1] or stages[1].weight.shape[1] != width:
        msg = f"A CP decomposition is a chain 1x1, depthwise, 1x1, not {chain.shapes}."
        raise ValueError(msg)
    inp, tap, out = (stage.weight.flatten(2).double() for stage in stages)
    return Factors(out, inp.mT, tap.mT)
