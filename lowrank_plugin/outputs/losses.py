# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What a change of an output costs: divergences of the distributions that logits stand for, distances of values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

NATS = "nats"
SQUARES = "relative squared error"


class Loss(Protocol):
    """A loss, summed over the samples of a batch, that is least, and zero, where the output is the target.

    Its second derivative there is positive semidefinite; of divergences it is the Fisher information of the
    distribution that the output stands for.
    """

    @property
    def unit(self) -> str:
        """What the loss of a sample is counted in."""
        ...

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar."""
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

    unit: ClassVar[str] = SQUARES

    @classmethod
    def spread_as(cls, output: Tensor) -> Values:
        """Squared distances over the variance of the values of a batch, as a mean over the values of a sample.

        >>> values = Values.spread_as(torch.tensor([[1.0, 1.0], [5.0, 5.0]]))
        >>> round(float(values.value(torch.tensor([[3.0, 3.0]]), torch.tensor([[1.0, 1.0]])) ), 6)
        1.0

        :param output: [B, ...], float32; not all the same (:func:`is_constant`).
        """
        spread = output.detach().std(correction=0).clamp_min(torch.finfo(output.dtype).tiny)
        return cls((2 / max(1, output[0].numel() if output.dim() else 1)) ** 0.5 / spread)

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


def is_constant(output: Tensor) -> bool:
    """Whether all values are the same, up to rounding, so that nothing is relative to how they vary.

    >>> is_constant(torch.full((8, 3), 0.1)), is_constant(torch.tensor([0.0, 1.0]))
    (True, False)

    :param output: floating-point, not empty.
    """
    values = output.detach()
    low, high = values.min(), values.max()
    return bool(high - low <= 4 * torch.finfo(values.dtype).eps * torch.maximum(low.abs(), high.abs()))


@dataclass(frozen=True)
class Softmax:
    """Kullback-Leibler divergence of the output's softmax from that of the target; both are logits.

    >>> logits = torch.tensor([[1.0, 2.0]])
    >>> float(Softmax().value(logits, logits))
    0.0

    :param axis: of the classes; there is one distribution for every place on the other axes.
    :param share: what each distribution counts.
    """

    axis: int = 1
    share: float = 1.0

    unit: ClassVar[str] = NATS

    @classmethod
    def per_place(cls, output: Tensor, axis: int) -> Softmax:
        """As a mean over the places of a sample.

        >>> Softmax.per_place(torch.zeros(2, 5, 2, 2), axis=1)
        Softmax(axis=1, share=0.25)

        :param output: [B, ...].
        :param axis: of the classes.
        """
        return cls(axis, output.shape[0] * output.shape[axis] / output.numel())

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """KL(target || output) in nats, summed over all distributions: a scalar."""
        mine, wanted = output.log_softmax(self.axis), target.log_softmax(self.axis)
        return self.share * F.kl_div(mine, wanted, log_target=True, reduction="sum")

    def slope(self, output: Tensor, target: Tensor) -> Tensor:
        """The difference of the probabilities."""
        return self.share * (output.softmax(self.axis) - target.softmax(self.axis))

    def curvature(self, output: Tensor, tangent: Tensor) -> Tensor:
        """(diag(p) - p p') times the tangent."""
        probabilities = output.softmax(self.axis)
        weighted = probabilities * tangent
        return self.share * (weighted - probabilities * weighted.sum(self.axis, keepdim=True))

    def probe(self, output: Tensor, generator: torch.Generator) -> Tensor:
        r"""Random signs times a root of the curvature, :math:`S S^T = diag(p) - p p^T` with :math:`S = (1 - p 1^T)
        diag(p)^{1/2}`."""
        probabilities = output.softmax(self.axis)
        rooted = probabilities.sqrt() * _signs(output, generator)
        return self.share**0.5 * (rooted - probabilities * rooted.sum(self.axis, keepdim=True))

    def drawn(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """The slope for labels drawn from the output's own softmax."""
        probabilities = output.softmax(self.axis).movedim(self.axis, -1)
        flat = probabilities.flatten(0, -2).cpu()
        labels = torch.multinomial(flat, 1, generator=generator).reshape(probabilities.shape[:-1]).to(output.device)
        errors = probabilities - F.one_hot(labels, probabilities.shape[-1])
        return self.share**0.5 * errors.movedim(-1, self.axis)


@dataclass(frozen=True)
class Sigmoid:
    """Kullback-Leibler divergence of independent yes-or-no answers; outputs are the logits of yes.

    >>> logits = torch.tensor([[0.0, 3.0]])
    >>> float(Sigmoid().value(logits, logits)), Sigmoid().slope(logits, torch.zeros(1, 2))[0, 0]
    (0.0, tensor(0.))

    :param share: what each answer counts.
    """

    share: float = 1.0

    unit: ClassVar[str] = NATS

    @classmethod
    def per_place(cls, output: Tensor, axis: int) -> Sigmoid:
        """As a mean over the places of a sample; the answers at one place are added up.

        >>> Sigmoid.per_place(torch.zeros(2, 5, 2, 2), axis=1)
        Sigmoid(share=0.25)

        :param output: [B, ...].
        :param axis: along which one place has several answers; there need be none.
        """
        answers = output.shape[axis] if -output.dim() <= axis < output.dim() else 1
        return cls(output.shape[0] * answers / output.numel() if output.dim() > 1 else 1.0)

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """KL(target || output) in nats, summed over all answers: a scalar."""
        yes = target.sigmoid() * (F.logsigmoid(target) - F.logsigmoid(output))
        no = (-target).sigmoid() * (F.logsigmoid(-target) - F.logsigmoid(-output))
        return self.share * (yes + no).sum()

    def slope(self, output: Tensor, target: Tensor) -> Tensor:
        """The difference of the probabilities."""
        return self.share * (output.sigmoid() - target.sigmoid())

    def curvature(self, output: Tensor, tangent: Tensor) -> Tensor:
        """The variance of each answer times the tangent."""
        return self.share * output.sigmoid() * (-output).sigmoid() * tangent

    def probe(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A random sign times the standard deviation of each answer."""
        return (self.share * output.sigmoid() * (-output).sigmoid()).sqrt() * _signs(output, generator)

    def drawn(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """The slope for answers drawn from the output's own probabilities."""
        probabilities = output.sigmoid()
        errors = probabilities - torch.bernoulli(probabilities.cpu(), generator=generator).to(output)
        return self.share**0.5 * errors


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(2, like.shape, generator=generator).to(like) * 2 - 1
