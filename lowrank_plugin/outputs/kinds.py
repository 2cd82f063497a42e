# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

r"""What the outputs of a model are, and so what a change of them costs.

Everything that weighs layers, turns norms towards the output, or refits a network to the outputs of another asks here.

**Names.** An output is a tensor somewhere in what the model returns. It goes by its path there, as ``logits``, ``0`` or
``aux.1`` (fields of dataclasses and named tuples, keys of mappings, places in tuples and lists), or, where no path
fits, by its number among all tensors. A part of a path, such as ``aux``, stands for all outputs in it.

**What users say.** ``{"kind": "softmax", "axis": 1}`` of all outputs, or a mapping from names to that or ``"ignore"``:

===========  ===========================================================================================================
kind         what it is; what a change costs
===========  ===========================================================================================================
``softmax``  logits or probabilities of one class of many, along the axis; KL divergence, in nats
``sigmoid``  logits (with ``"probabilities": true`` probabilities) of independent answers; KL divergence, in nats
``values``   anything else; squared error over the variance of the values, a mean over those of a sample
===========  ===========================================================================================================

Divergences are means over the places of a sample, such as tokens or pixels, and sums over the answers at a place.
Losses of several outputs are added up.

**What is made of an output that nothing is said of** (``"auto"``), the first that fits:

- left out: what is not floating-point, has no axis or no entry; what is called ``loss`` or ``..._loss``, caches and
  what goes on inside (:data:`INSIDE`), where there is anything else; values that are all the same; and for gradients
  what does not depend on the layers;
- softmax: what is called ``logits`` or ``..._logits``; along the last axis of three, otherwise along axis 1;
- values: what stands in a list of mappings, as detections do, image by image;
- softmax along axis 1: a matrix [B, C] of more than one column. Regression of several numbers looks the same: say
  ``values``. So do the logits of labels that do not exclude one another, and what a sigmoid puts out: say ``sigmoid``;
- softmax along the last axis: [B, N, V], where V words have an embedding and a linear layer puts out as many;
- softmax along the last axis or axis 1: what is nowhere negative and sums to 1 there;
- values: the rest. Segmentation [B, C, H, W] looks like an image: say ``softmax``.

Where a softmax has been applied already, as is seen from sums of 1, the logarithm is taken first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.outputs.given import LossFunction
from lowrank_plugin.outputs.losses import Loss, Sigmoid, Softmax, Values
from lowrank_plugin.support.messages import suggestion

KINDS: dict[str, Callable[[Tensor, int], Loss]] = {
    "softmax": Softmax.per_place,
    "sigmoid": Sigmoid.per_place,
    "values": lambda output, axis: Values.spread_as(output),
}
"""For each kind of output what makes its loss from one output and the axis of its classes."""

INSIDE = ("past_key_values", "cache_params", "mems", "hidden_states", "attentions")
"""Ends of the names by which Hugging Face models return what is no output but goes on inside of them."""

AUTO, CALLABLE, IGNORE = "auto", "callable", "ignore"


@dataclass(frozen=True)
class Output:
    """What one output tensor is.

    >>> segmentation = Output("softmax", axis=1)
    >>> segmentation.loss(torch.zeros(2, 5, 8, 8))
    Softmax(axis=1, share=0.015625)

    :param kind: one of :data:`KINDS`, see above.
    :param axis: of the classes, or of the answers of one place; values have none.
    :param probabilities: whether a sigmoid has been applied already; of a softmax it is seen.
    :raises ConfigurationError: where there is no such kind.
    """

    kind: str
    axis: int = 1
    probabilities: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            near = suggestion(self.kind, KINDS)
            msg = f"Unknown kind of output {self.kind!r}. {near}Choose one of: {', '.join(KINDS)}."
            raise ConfigurationError(msg)

    def loss(self, output: Tensor) -> Loss:
        """What a change of the output costs.

        :param output: such an output, of at least one sample.
        :raises ConfigurationError: where it has no such axis.
        """
        if self.kind == "softmax" and not -output.dim() <= self.axis < output.dim():
            msg = f"The output has no axis {self.axis} of classes: its shape is {list(output.shape)}."
            raise ConfigurationError(msg)
        return KINDS[self.kind](output, self.axis)

    def logits(self, output: Tensor) -> Tensor:
        """The output, or its logits where it is of probabilities.

        >>> Output("softmax").logits(torch.tensor([[0.25, 0.75]])).exp()
        tensor([[0.2500, 0.7500]])

        :param output: such an output.
        :raises ConfigurationError: where probabilities are promised and it is outside of 0 and 1.
        """
        if self.kind == "softmax" and are_probabilities(output, self.axis):
            return output.clamp_min(torch.finfo(output.dtype).tiny).log()
        if self.kind == "sigmoid" and self.probabilities:
            if not bool(((output >= 0) & (output <= 1)).all()):
                msg = 'The output is said to be of "probabilities", but goes beyond 0 and 1: they are logits.'
                raise ConfigurationError(msg)
            return output.logit(torch.finfo(output.dtype).eps)
        return output


Described: TypeAlias = "str | Output | Mapping[str, Output | None] | LossFunction"
"""What a user says of outputs: ``"auto"``, one kind for all, kinds by name (None: to be ignored), or a loss of all of
them together; ``"callable"`` where it was a function that could not be written down."""


def read_described(value: Any) -> Described:
    """Read what users write under ``"output"``.

    >>> read_described({"logits": {"kind": "softmax"}, "aux": "ignore"})
    {'logits': Output(kind='softmax', axis=1, probabilities=False), 'aux': None}

    :param value: a JSON value that fits the schema, or a function.
    :raises ConfigurationError: where there is no such kind.
    """
    if not isinstance(value, Mapping):
        return value
    if isinstance(value.get("kind"), str) and value["kind"] != IGNORE:
        return Output(**value)
    return {str(name): Output(**each) if isinstance(each, Mapping) else None for name, each in value.items()}


def written_described(described: Described) -> Any:
    """Write it down as JSON; of a function only that it was one.

    >>> written_described(Output("softmax", -1)), written_described(lambda output, reference: 0)
    ({'kind': 'softmax', 'axis': -1}, 'callable')

    :param described: what a user said.
    """
    if isinstance(described, Output):
        more = {"probabilities": True} if described.probabilities else {}
        return {"kind": described.kind, "axis": described.axis, **more}
    if isinstance(described, Mapping):
        return {name: IGNORE if each is None else written_described(each) for name, each in described.items()}
    return CALLABLE if callable(described) else described


def are_probabilities(output: Tensor, axis: int) -> bool:
    """Whether nothing is negative and all sums along an axis are 1, as after a softmax.

    >>> are_probabilities(torch.tensor([[0.25, 0.75]]), axis=1), are_probabilities(torch.tensor([[0.5, 0.75]]), axis=1)
    (True, False)

    :param output: floating-point.
    :param axis: of the classes.
    """
    values = output.detach()
    if not -values.dim() <= axis < values.dim() or values.shape[axis] < 2 or not bool((values >= 0).all()):
        return False
    # half precision was added up before it came here
    return bool(((values.float().sum(axis) - 1).abs() < 1e-4).all())


def vocabulary(model: nn.Module) -> int:
    """How many words a language model tells apart: as many have an embedding as a linear layer puts out; 0 for none.

    >>> vocabulary(nn.Sequential(nn.Embedding(100, 16), nn.Linear(16, 100)))
    100

    :param model: the network.
    """
    tables = [each for each in model.modules() if isinstance(each, nn.Embedding)]
    largest = max(tables, key=lambda each: each.num_embeddings, default=None)
    if largest is None or largest.num_embeddings == largest.embedding_dim:
        return 0
    heads = (each.out_features for each in model.modules() if isinstance(each, nn.Linear))
    return largest.num_embeddings if largest.num_embeddings in heads else 0


def judged(output: Tensor, name: str = "", words: int = 0) -> Output:
    """What an output that nothing is said of is taken for, see above.

    >>> judged(torch.zeros(8, 10)).kind, judged(torch.zeros(8, 1)).kind, judged(torch.zeros(8, 10, 7, 7)).kind
    ('softmax', 'values', 'values')
    >>> judged(torch.zeros(8, 10, 7, 7), "logits"), judged(torch.zeros(8, 20, 100), words=100).axis
    (Output(kind='softmax', axis=1, probabilities=False), -1)

    :param output: [B, ...].
    :param name: its name.
    :param words: how many words the model tells apart, if it is a language model.
    """
    last, axis = name.rpartition(".")[2], -1 if output.dim() == 3 else 1
    if output.dim() > 1 and (last == "logits" or last.endswith("_logits")) and output.shape[axis] > 1:
        return Output("softmax", axis)
    if re.search(r"(^|\.)\d+\.[^.]*\D", name):
        return Output("values")
    if output.dim() == 2:
        return Output("softmax" if output.shape[1] > 1 else "values")
    if output.dim() == 3 and output.shape[2] == words:
        return Output("softmax", -1)
    found = [each for each in (-1, 1) if output.dim() > 2 and are_probabilities(output, each)]
    return Output("softmax", found[0]) if found else Output("values")
