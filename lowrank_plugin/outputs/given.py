# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A user's own loss of a model's outputs, by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.outputs.joint import Layout

GIVEN = "the given loss"

LossFunction = Callable[[Any, Any], Tensor]
"""From an output of the model and the output it should be, both as the model returns them, to the loss of each sample
[B]: zero where the two are the same and never less, twice differentiable there."""

LANCZOS = 24
"""Most steps towards the root of a curvature."""


@dataclass(frozen=True)
class Given:
    r"""A user's own loss L, by automatic differentiation.

    The curvature is :math:`H = \partial^2 L(o, r) / \partial o^2` at :math:`o = r`, the output itself: exact, as a
    product with a tangent, by differentiating twice. A probe :math:`z = H^{1/2} s` of random signs s has
    :math:`E[z z^T] = H`; the product of the root is that of the Krylov space of s and H (Lanczos, with all vectors
    orthogonalised), exact after as many steps as H has distinct eigenvalues and else close to it. That needs no
    distribution that the loss belongs to, only that L is least at the reference: directions in which H is negative
    count nothing. Where H vanishes, as for absolute differences, it tells nothing of what an error costs.

    :param function: the loss of each sample.
    :param layout: where the tensors stand that make up the output.
    :param rebuild: the output as the model returns it, of these tensors.
    """

    function: LossFunction
    layout: Layout
    rebuild: Callable[[Sequence[Tensor]], object]

    unit: ClassVar[str] = GIVEN

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum of what the function returns."""
        losses = self.function(*(self.rebuild(self.layout.parted(each)) for each in (output, target)))
        if not (isinstance(losses, Tensor) and losses.dim() == 1):
            shape = f"shape {list(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            msg = f'The function given as "output" must return the loss of each sample, a tensor [B], not {shape}.'
            raise ConfigurationError(msg)
        return losses.sum()

    def slope(self, output: Tensor, target: Tensor) -> Tensor:
        """By differentiating once."""
        return self._slope(output.detach().requires_grad_(), target.detach(), again=False)[0]

    def curvature(self, output: Tensor, tangent: Tensor) -> Tensor:
        """By differentiating twice, at the output as its own reference."""
        at = output.detach().requires_grad_()
        slope, _ = self._slope(at, output.detach(), again=True)
        if not slope.requires_grad:
            return torch.zeros_like(tangent)
        with torch.enable_grad():
            [product] = torch.autograd.grad(slope, at, tangent, allow_unused=True)
        return torch.zeros_like(tangent) if product is None else product

    def probe(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A root of the curvature times random signs."""
        signs = torch.randint(2, output.shape, generator=generator).to(output) * 2 - 1
        found = rooted(lambda tangent: self.curvature(output, tangent), signs, LANCZOS)
        if not found.isfinite().all() or not found.any():
            msg = (
                'The function given as "output" has no curvature where the output is the reference: its second '
                f"derivative there is {'zero' if found.isfinite().all() else 'not finite'}. It must be twice "
                "differentiable and least there, as squared distances and divergences are, and distances are not."
            )
            raise ConfigurationError(msg)
        return found

    def drawn(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """The same: there is no distribution to draw from."""
        return self.probe(output, generator)

    def _slope(self, output: Tensor, target: Tensor, *, again: bool) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            value = self.value(output, target)
            if not value.requires_grad:
                return torch.zeros_like(output), value
            [slope] = torch.autograd.grad(value, output, create_graph=again, allow_unused=True)
        return torch.zeros_like(output) if slope is None else slope, value


def rooted(matrix: Callable[[Tensor], Tensor], vectors: Tensor, steps: int) -> Tensor:
    r"""Products :math:`H^{1/2} v` of the root of a symmetric matrix a row, by Lanczos' method.

    >>> diagonal = torch.tensor([1.0, 4.0, 9.0])
    >>> rooted(lambda each: diagonal * each, torch.ones(1, 3), steps=3).round(decimals=4)
    tensor([[1., 2., 3.]])

    :param matrix: from [B, n] to the products of each row with its matrix.
    :param vectors: [B, n].
    :param steps: the most products.
    :return: [B, n]; negative eigenvalues count as zero.
    """
    norms = vectors.norm(dim=1, keepdim=True)
    basis = [vectors / norms]
    images: list[Tensor] = []
    for _ in range(min(steps, vectors.shape[1])):
        images.append(matrix(basis[-1]))
        rest = images[-1]
        for each in basis * 2:  # twice, because once leaves what rounding leaves
            rest = rest - (rest * each).sum(dim=1, keepdim=True) * each
        length = rest.norm(dim=1, keepdim=True)
        # rows whose space is exhausted go on with zeros
        known = length > 1e-5 * images[0].norm(dim=1, keepdim=True)
        if not known.any():
            break
        basis.append(torch.where(known, rest / length.clamp_min(torch.finfo(rest.dtype).tiny), 0))
    space, products = torch.stack(basis[: len(images)], dim=1), torch.stack(images, dim=1)
    small = (space @ products.mT).double()
    values, directions = torch.linalg.eigh((small + small.mT) / 2)
    first = directions[:, :1, :].mT * values.clamp_min(0).sqrt().unsqueeze(2)
    weights = (directions @ first).to(vectors)
    return norms * (space.mT @ weights).squeeze(2)
