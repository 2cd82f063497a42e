# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What the output of a model is: logits or plain values, and so what a change of it costs.

Everything that weighs layers, turns norms towards the output, or refits a network to the outputs of another asks here.
Another kind of output is another :class:`Loss` in :data:`KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.support.messages import suggestion


class Loss(Protocol):
    """A loss, summed over a batch, that is convex in the output, and least where the output is the target.

    Its second derivative there is the Fisher information of the distribution that the output stands for.
    """

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar, in nats."""
        ...

    def slope(self, output: Tensor, target: Tensor) -> Tensor:
        """Its gradient in the output, of the shape of the output."""
        ...

    def curvature(self, output: Tensor, tangent: Tensor) -> Tensor:
        """Its second derivative in the output, times a tangent of the shape of the output."""
        ...

    def probe(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A random tensor of the shape of the output whose second moments are the second derivative.

        Of all such tensors one that varies little, to be averaged over few samples.
        """
        ...

    def drawn(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """The slope for a target drawn from the distribution that the output stands for; the same second moments."""
        ...


@dataclass(frozen=True)
class Values:
    """Half of the squared distance to the target: the output is the mean of a Gaussian.

    >>> Values().value(torch.tensor([3.0]), torch.tensor([1.0]))
    tensor(2.)

    :param scale: what distances are multiplied by: one over the Gaussian's standard deviation.
    """

    scale: float | Tensor = 1.0

    @classmethod
    def spread_as(cls, output: Tensor) -> Values:
        """Relative to how much values vary over a batch, and as a mean over the values of a sample.

        >>> values = Values.spread_as(torch.tensor([[1.0, 1.0], [5.0, 5.0]]))
        >>> round(float(values.value(torch.tensor([[3.0, 3.0]]), torch.tensor([[1.0, 1.0]])) ), 6)
        0.5

        :param output: [B, ...], float32.
        """
        spread = output.detach().std(correction=0).clamp_min(torch.finfo(output.dtype).tiny)
        return cls(spread.new_ones(()) / max(1, output[0].numel() if output.dim() else 1) ** 0.5 / spread)

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """Half of the squared distance, a scalar."""
        return (self.scale * (output - target)).square().sum() / 2

    def slope(self, output: Tensor, target: Tensor) -> Tensor:
        """The difference."""
        return self.scale**2 * (output - target)

    def curvature(self, output: Tensor, tangent: Tensor) -> Tensor:
        """The tangent itself, scaled."""
        return self.scale**2 * tangent

    def probe(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Independent normal numbers."""
        return torch.randn(output.shape, generator=generator).to(output) * self.scale

    def drawn(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """The same: targets are drawn around the output."""
        return self.probe(output, generator)


@dataclass(frozen=True)
class Softmax:
    """Kullback-Leibler divergence of the output's softmax from that of the target; both are logits.

    >>> logits = torch.tensor([[1.0, 2.0]])
    >>> float(Softmax().value(logits, logits))
    0.0

    :param axis: of the classes; there is one distribution for every place on the other axes.
    """

    axis: int = 1

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """KL(target || output) in nats, summed over all distributions: a scalar."""
        mine, wanted = output.log_softmax(self.axis), target.log_softmax(self.axis)
        return F.kl_div(mine, wanted, log_target=True, reduction="sum")

    def slope(self, output: Tensor, target: Tensor) -> Tensor:
        """The difference of the probabilities."""
        return output.softmax(self.axis) - target.softmax(self.axis)

    def curvature(self, output: Tensor, tangent: Tensor) -> Tensor:
        """(diag(p) - p p') times the tangent."""
        probabilities = output.softmax(self.axis)
        weighted = probabilities * tangent
        return weighted - probabilities * weighted.sum(self.axis, keepdim=True)

    def probe(self, output: Tensor, generator: torch.Generator) -> Tensor:
        r"""Random signs times a root of the curvature, :math:`S S^T = diag(p) - p p^T` with :math:`S = (1 - p 1^T)
        diag(p)^{1/2}`."""
        probabilities = output.softmax(self.axis)
        rooted = probabilities.sqrt() * _signs(output, generator)
        return rooted - probabilities * rooted.sum(self.axis, keepdim=True)

    def drawn(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """The slope for labels drawn from the output's own softmax."""
        probabilities = output.softmax(self.axis).movedim(self.axis, -1)
        flat = probabilities.flatten(0, -2).cpu()
        labels = torch.multinomial(flat, 1, generator=generator).reshape(probabilities.shape[:-1]).to(output.device)
        return (probabilities - F.one_hot(labels, probabilities.shape[-1])).movedim(-1, self.axis)


@dataclass(frozen=True)
class Sigmoid:
    """Kullback-Leibler divergence of independent yes-or-no answers; outputs are the logits of yes.

    >>> logits = torch.tensor([[0.0, 3.0]])
    >>> float(Sigmoid().value(logits, logits)), Sigmoid().slope(logits, torch.zeros(1, 2))[0, 0]
    (0.0, tensor(0.))
    """

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """KL(target || output) in nats, summed over all answers: a scalar."""
        yes = target.sigmoid() * (F.logsigmoid(target) - F.logsigmoid(output))
        no = (-target).sigmoid() * (F.logsigmoid(-target) - F.logsigmoid(-output))
        return (yes + no).sum()

    def slope(self, output: Tensor, target: Tensor) -> Tensor:
        """The difference of the probabilities."""
        return output.sigmoid() - target.sigmoid()

    def curvature(self, output: Tensor, tangent: Tensor) -> Tensor:
        """The variance of each answer times the tangent."""
        return output.sigmoid() * (-output).sigmoid() * tangent

    def probe(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A random sign times the standard deviation of each answer."""
        return (output.sigmoid() * (-output).sigmoid()).sqrt() * _signs(output, generator)

    def drawn(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """The slope for answers drawn from the output's own probabilities."""
        probabilities = output.sigmoid()
        return probabilities - torch.bernoulli(probabilities.cpu(), generator=generator).to(output)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(2, like.shape, generator=generator).to(like) * 2 - 1


KINDS: dict[str, Callable[[Tensor, int], Loss]] = {
    "softmax": lambda output, axis: Softmax(axis),
    "sigmoid": lambda output, axis: Sigmoid(),
    "values": lambda output, axis: Values.spread_as(output),
}
"""For each kind of output what makes its loss from one output and the axis of its classes."""


@dataclass(frozen=True)
class Output:
    """What one output tensor is.

    >>> segmentation = Output("softmax", axis=1)
    >>> segmentation.loss(torch.zeros(2, 5, 8, 8))
    Softmax(axis=1)

    :param kind: one of :data:`KINDS`: ``"softmax"`` for the logits of one class of many, ``"sigmoid"`` for those of
        independent yes-or-no answers, ``"values"`` for anything else.
    :param axis: of the classes; only ``"softmax"`` asks for it.
    :raises ConfigurationError: where there is no such kind.
    """

    kind: str
    axis: int = 1

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


def judged(output: Tensor) -> Output:
    """What an output that nothing is said of is taken for: a matrix for logits, anything else for values.

    >>> judged(torch.zeros(8, 10)).kind, judged(torch.zeros(8, 1)).kind, judged(torch.zeros(8, 10, 7, 7)).kind
    ('softmax', 'values', 'values')

    :param output: [B, ...].
    """
    return Output("softmax" if output.dim() == 2 and output.shape[1] > 1 else "values")


def outputs_of(output: object, described: Output | None = None) -> list[tuple[Tensor, Loss]]:
    """The floating-point tensors that a model puts out, in float32, each with what a change of it costs.

    >>> [(tensor, loss)] = outputs_of({"logits": torch.zeros(8, 10), "lengths": torch.ones(8, dtype=torch.long)})
    >>> tensor.shape, loss
    (torch.Size([8, 10]), Softmax(axis=1))

    :param output: what the model returned, any nesting of tuples, lists and dicts.
    :param described: what its tensors are; None to judge each by its shape.
    :raises ConfigurationError: where a tensor has not the axis that is described.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    found = []
    for leaf in leaves:
        tensor = leaf.float()
        found.append((tensor, (described or judged(tensor)).loss(tensor)))
    return found
