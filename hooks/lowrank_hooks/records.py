# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The named records that plugins yield."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn

from lowrank_hooks.adapter import LayerAdapter
from lowrank_hooks.factorization import StageShape
from lowrank_hooks.problem import Decomposer, Problem

API_VERSION = 1
"""The version of this contract. A record made for another one is refused with a message."""


@dataclass(frozen=True)
class DecomposerRecord:
    """A way to factorise a kernel.

    :param name: what users write under ``"decomposers"``.
    :param decomposer: the implementation.
    :param summary: one line for listings.
    :param spatial_axes: the numbers of spatial axes it takes; 0 is a linear layer, 2 a Conv2d.
    :param automatic: whether it competes under ``"decomposers": "auto"``.
    :param largest: the most weights of a kernel for which it competes there, for one whose fits take long; None for
        any kernel.
    :param int8: whether it competes under ``"int8"`` as well, that is, whether its chains gain from 8 bits as dense
        layers do; depthwise stages do not.
    :param api_version: the contract it was written for.
    """

    name: str
    decomposer: Decomposer
    summary: str = ""
    spatial_axes: frozenset[int] = frozenset({0, 1, 2, 3})
    automatic: bool = True
    largest: int | None = None
    int8: bool = True
    api_version: int = API_VERSION


@dataclass(frozen=True)
class LayerAdapterRecord:
    """A module type that can be factorised.

    :param name: shown in listings and stored in saved states.
    :param module_type: subclasses are taken too where they change nothing but how they are constructed; those with a
        forward of their own are left alone.
    :param adapter: the implementation.
    :param summary: one line for listings.
    :param api_version: the contract it was written for.
    """

    name: str
    module_type: type[nn.Module]
    adapter: LayerAdapter
    summary: str = ""
    api_version: int = API_VERSION


@dataclass(frozen=True)
class CostContext:
    """The network that costs are measured for.

    :param model: the network; it must not be changed.
    :param example: an input for it, any nesting of tuples, lists and dicts of tensors.
    :param runtime: the section's ``"runtime"``: where and in which precision the network will run.
    :param inputs: for each layer that can be compressed, the shape of its input at every call with the example.
    :param chain: called with a layer's name and the sizes of a chain for one group, builds that chain for it with
        random weights; without sizes, a layer like the original.
    """

    model: nn.Module
    example: object
    runtime: Mapping[str, str]
    inputs: Mapping[str, Sequence[Sequence[int]]]
    chain: Callable[[str, Sequence[StageShape]], nn.Module]


@runtime_checkable
class MeasuredCost(Protocol):
    """A cost that no formula gives: it is measured, for one network."""

    def layer(self, name: str, chains: Sequence[Sequence[StageShape]]) -> Sequence[float]:
        """What a layer costs with each of these chains in its place; an empty chain stands for the layer itself.

        All chains of a layer come at once, so that few may be measured and the others interpolated. Costs are above 0;
        as measurements are noisy, a budget is shared by their geometric means with a model of all layers' costs.
        """
        ...

    def networks(self, networks: Sequence[nn.Module]) -> Sequence[float]:
        """What whole networks cost with the example, in the unit of ``layer``, measured side by side."""
        ...

    def facts(self) -> Mapping[str, str]:
        """Where the cost was measured, to be written into the plan."""
        ...


@dataclass(frozen=True)
class CostModelRecord:
    """What a chain costs: the unit of a budget. Either ``cost`` or ``measure`` is given.

    :param name: the key users write in ``"budget"``.
    :param cost: called with the sizes of a chain for one group, the positions each stage computes for one sample, and
        the groups of the layer; returns the cost of the layer in any additive unit.
    :param summary: one line for listings.
    :param api_version: the contract it was written for.
    :param measure: called once for a plan, for a cost that is measured on the network. A plan's budget is then met by
        what the whole network measures, not by the sum over its layers.
    """

    name: str
    cost: Callable[[Sequence[StageShape], Sequence[int], int], float] | None = None
    summary: str = ""
    api_version: int = API_VERSION
    measure: Callable[[CostContext], MeasuredCost] | None = None

    def __post_init__(self) -> None:
        if (self.cost is None) == (self.measure is None):
            msg = f"The cost model {self.name!r} must have either a cost or a measure."
            raise ValueError(msg)


@dataclass(frozen=True)
class Option:
    """One choice for one layer, as rank policies see it.

    >>> Option(cost=1000.0, error=0.5, weight=2.0).loss
    0.5

    :param cost: what the layer costs with this choice.
    :param error: its relative error; 0 for keeping the layer dense.
    :param weight: what a squared relative error of 1 at this layer is expected to cost the model, in nats; the same
        for all options of a layer, and 1 where it is unknown.
    :param insight: what the policy's own ``inspect`` returned for the layer; None where it has none.
    """

    cost: float
    error: float
    weight: float = 1.0
    insight: Any = None

    @property
    def loss(self) -> float:
        """What the choice is expected to cost the model."""
        return self.weight * self.error**2


@dataclass(frozen=True)
class RankPolicyRecord:
    """How the choices of all layers are made under one budget.

    :param name: what users write under ``"policy"``.
    :param allocate: called with {layer: its options, the first of which keeps it dense} and the cost that all layers
        together may have; returns {layer: index of its option}. Raises ValueError where the budget cannot be met.
    :param summary: one line for listings.
    :param api_version: the contract it was written for.
    :param inspect: for policies that must see kernels and norms: called with the problem of each layer before
        ``allocate``; what it returns is the ``insight`` of the layer's options. None where costs and errors suffice.
    """

    name: str
    allocate: Callable[[Mapping[str, Sequence[Option]], float], Mapping[str, int]]
    summary: str = ""
    api_version: int = API_VERSION
    inspect: Callable[[Problem], object] | None = None


@dataclass(frozen=True)
class CompressionContext:
    """What a config says for all of its algorithms alike.

    :param dataset: the calibration data as the host knows them (``nncf.Dataset``); None if there are none.
    :param example_input: an example input of the model; None if it is to be taken from the data.
    :param target_device: the device the network will run on.
    :param validation_fn: called with a model, returns its quality, higher is better; None if there is none.
    """

    dataset: Any = None
    example_input: object = None
    target_device: str = "ANY"
    validation_fn: Callable[[nn.Module], float] | None = None


@dataclass(frozen=True)
class CompressionAlgorithmRecord:
    """An algorithm that a config may list beside ``"lowrank"`` and ``"quantization"``.

    Its place is declared by the names of the algorithms it must come after and before. Names that a config does not
    use count for nothing, so algorithms that are not installed may be named.

    :param name: what users write under ``"algorithm"``.
    :param apply: called with the model, the section and the context; returns the compressed model and its statistics,
        JSON values or an object with ``to_str`` and ``to_dict``. Never changes the model it is given.
    :param schema: JSON schema of the section without the key ``"algorithm"``. Where it has ``"ignored_scopes"`` or
        ``"target_scopes"``, those of the whole config are added.
    :param check: called with the model, the section and the context before any algorithm runs; raises ValueError
        where the section cannot be used. None checks the schema only.
    :param after: names of algorithms that must come earlier in a config.
    :param before: names of algorithms that must come later in a config.
    :param summary: one line for listings.
    :param restore: called with a fresh model, in the structure that the algorithms before this one leave, and the
        statistics that ``apply`` returned, as JSON; returns it in the structure that this one leaves, with any weights.
        None where the algorithm changes nothing but weights.
    :param api_version: the contract it was written for.
    """

    name: str
    apply: Callable[[nn.Module, Mapping[str, Any], CompressionContext], tuple[nn.Module, Any]]
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    check: Callable[[nn.Module, Mapping[str, Any], CompressionContext], None] | None = None
    after: frozenset[str] = frozenset()
    before: frozenset[str] = frozenset()
    summary: str = ""
    restore: Callable[[nn.Module, Any], nn.Module] | None = None
    api_version: int = API_VERSION


@dataclass(frozen=True)
class StepEvent:
    """Something the flow has just done, for progress displays and logs.

    >>> StepEvent("fit", done=3, total=20, layer="layer1.0.conv1")
    StepEvent(step='fit', done=3, total=20, layer='layer1.0.conv1')

    :param step: ``"survey"``, ``"collect"``, ``"trial"``, ``"weigh"``, ``"propose"``, ``"measure"``, ``"fit"``,
        ``"repair"``, ``"distill"``, ``"evaluate"``, ``"rotate"`` or ``"round"``.
    :param done: units finished, layers or batches.
    :param total: units in all; None where it is unknown.
    :param layer: the layer just finished, where the unit is a layer.
    """

    step: str
    done: int
    total: int | None = None
    layer: str | None = None
