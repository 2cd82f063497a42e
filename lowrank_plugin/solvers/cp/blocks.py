# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

r"""One sweep of alternating least squares for a CP decomposition, in any norm and with any sensitivity penalty.

Letters are those of the table of notation in lowrank_plugin/README.md; the kernel W is [G, T, S, K] here and
:math:`M = B \odot C` is [S*K, R]. The squared error of a group is
:math:`\mathrm{tr}(\Gamma (W - A M^\top) \Sigma (W - A M^\top)^\top)` with a diagonal :math:`\Gamma`, to which any
other is rotated.

Products with the kernel and the covariance are done in the kernel's dtype: they are nearly all of the work, and their
rounding perturbs the right-hand sides by one unit only. R x R systems are float64, because their condition number is
the square of that of the factors.

[1] Phan et al., "Stable Low-Rank Tensor Decomposition for Compression of Convolutional Neural Network", ECCV 2020,
arXiv:2008.05441.
[2] Kalle et al., "Distribution-Aware Tensor Decomposition for Compression of Convolutional Neural Networks", NeurIPS
2025, arXiv:2511.04494.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lowrank_plugin.solvers.cp.sensitivity import Factors, bounded_update, rescale
from lowrank_plugin.solvers.parts.linear_algebra import cholesky, solve_right

_LEAST, _BLOCKS = 64, 4
"""The fewest components that are worked on at a time under a covariance, and the most such blocks of them."""


class Sweep(NamedTuple):
    """What a sweep returns.

    >>> kernel = torch.ones(1, 2, 2, 2)
    >>> objective = Objective(kernel, kernel.double().square().sum().reshape(1))
    >>> sweep = objective.refit(Factors(*(torch.ones(1, 2, 1, dtype=torch.float64) for _ in range(3))))
    >>> round(float(sweep.error), 3), float(sweep.multiplier)
    (0.0, 0.0)

    :param factors: rescaled to least sensitivity.
    :param error: squared error, [G], float64.
    :param multiplier: of the bound on the error, [G], float64.
    """

    factors: Factors
    error: Tensor
    multiplier: Tensor


@dataclass(frozen=True)
class Objective:
    """The squared error as a function of the factors.

    >>> kernel = torch.ones(1, 3, 2, 4)
    >>> objective = Objective(kernel, kernel.double().square().sum().reshape(1))
    >>> draw = [torch.arange(1.0, n + 1).double().reshape(1, n, 1) for n in (3, 2, 4)]
    >>> sweep = objective.sweep(Factors(*draw), torch.zeros(1, dtype=torch.float64), None)
    >>> objective.plain, round(float(sweep.error), 3)
    (True, 0.0)

    :param cross: W Sigma, [G, T, S, K], in the dtype of the large products.
    :param energy: squared norm of W, [G], float64.
    :param covariance: Sigma, [G, S*K, S*K], in the dtype of ``cross``; None for the identity.
    :param rows: the diagonal of Gamma, [G, T], float64, positive; None for ones.
    :param whitener: inverse of the mean channel covariance, [G, S, S], to precondition with.
    :param input_steps: conjugate-gradient steps for the factor of the inputs.
    :param tap_steps: the same for the taps.
    """

    cross: Tensor
    energy: Tensor
    covariance: Tensor | None = None
    rows: Tensor | None = None
    whitener: Tensor | None = None
    input_steps: int = 2
    tap_steps: int = 1

    @property
    def plain(self) -> bool:
        """Whether it is the plain squared error."""
        return self.covariance is None and self.rows is None

    @property
    def cutoff(self) -> float | None:
        """Relative eigenvalue cut-off of the R x R systems: a covariance brings in the rounding of its dtype."""
        return None if self.covariance is None else 4 * torch.finfo(self.covariance.dtype).eps

    def refit(self, factors: Factors, bound: Tensor | None = None) -> Sweep:
        """Solve for the outputs alone, which is exact in every norm.

        :param factors: inputs and taps are taken from here.
        :param bound: None for least squares, else the bound on the squared error under which the sensitivity is
            minimised, [G].
        """
        image = self._image(factors)
        return self._outputs(factors, image, bound)

    def sweep(self, factors: Factors, multiplier: Tensor, bound: Tensor | None) -> Sweep:
        """Update inputs, taps and outputs in turn.

        :param factors: the point to start from; it is not changed.
        :param multiplier: the weight of the sensitivity against the squared error, [G], for inputs and taps.
        :param bound: None for least squares, else the bound that the update of the outputs keeps.
        """
        a = factors.out if self.rows is None else factors.out * self.rows[:, :, None]
        gram = a.mT @ factors.out
        image = self._image(factors)
        t, s, k = (factor.shape[1] for factor in factors)
        square_a, square_b, square_c = factors.squares()

        # Sums of products: as matrix products these would be one a component, each of a single column.
        projected = self._project(a)
        spare = None if self.covariance is None else projected
        rhs = torch.mul(projected, factors.tap.mT.to(projected)[:, :, None], out=spare).sum(dim=3).mT.double()
        if spare is not None:
            # Next to the covariance products it costs little to make this twice, instead of holding it meanwhile.
            del projected, spare
        penalty = multiplier[:, None] * (k * square_a + t * square_c)
        inp, image = self._inner(factors, 1, rhs, gram, penalty, image)
        factors = factors._replace(inp=inp)
        square_b = inp.square().sum(dim=1)
        if self.covariance is not None:
            projected = self._project(a)
        rhs = projected.mul_(inp.mT.to(projected)[:, :, :, None]).sum(dim=2).mT.double()
        del projected
        penalty = multiplier[:, None] * (s * square_a + t * square_b)
        tap, image = self._inner(factors, 2, rhs, gram, penalty, image)
        return self._outputs(factors._replace(tap=tap), image, bound)

    def _project(self, out: Tensor) -> Tensor:
        """The kernel seen through the outputs of each component, [G, R, S, K]."""
        return torch.einsum("gtr,gtsk->grsk", out.to(self.cross), self.cross)

    def _khatri_rao(self, inp: Tensor, tap: Tensor) -> Tensor:
        """[G, S*K, R] in the dtype of the large products."""
        return (inp.to(self.cross)[:, :, None] * tap.to(self.cross)[:, None]).flatten(1, 2)

    def _image(self, factors: Factors) -> Tensor | None:
        """Sigma M, [G, S*K, R]."""
        return None if self.covariance is None else self._seen(self.covariance, factors.inp, factors.tap)

    def _seen(self, covariance: Tensor, inp: Tensor, tap: Tensor) -> Tensor:
        """Sigma times a Khatri-Rao product, a block of components at a time."""
        blocks = _blocks(inp.shape[2])
        if len(blocks) == 1:
            return covariance @ self._khatri_rao(inp, tap)
        image = covariance.new_empty(*covariance.shape[:2], inp.shape[2])
        for block in blocks:
            image[:, :, block] = covariance @ self._khatri_rao(inp[:, :, block], tap[:, :, block])
        return image

    def _outputs(self, factors: Factors, image: Tensor | None, bound: Tensor | None) -> Sweep:
        """The exact update of the outputs (A.4 of [1] with bound, eq. 30 of [2] without) and its squared error."""
        mixed = self._khatri_rao(factors.inp, factors.tap)
        rhs = (self.cross.flatten(2) @ mixed).double()
        if image is None:
            del mixed
            gram = (factors.inp.mT @ factors.inp).mul_(factors.tap.mT @ factors.tap)
        else:
            gram = (mixed.mT @ image).double()
            del mixed
            gram = gram.add_(gram.mT.clone()).div_(2)
        _, square_b, square_c = factors.squares()
        multiplier = torch.zeros_like(self.energy)
        if bound is None:
            out = solve_right(rhs, _ridged(gram.clone(), self.cutoff))
        else:
            weights = factors.tap.shape[1] * square_b + factors.inp.shape[1] * square_c
            out, multiplier = bounded_update(rhs, gram, weights, self.energy, bound, self.rows, self.cutoff)
        by_row = torch.baddbmm(rhs, out, gram, beta=2, alpha=-1).mul_(out).sum(dim=2)
        error = self.energy - (by_row if self.rows is None else by_row * self.rows).sum(dim=1)
        del rhs, gram
        return Sweep(rescale(factors._replace(out=out)), error.clamp_min(0), multiplier)

    def _inner(
        self, factors: Factors, mode: int, rhs: Tensor, gram: Tensor, penalty: Tensor, image: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The update of inputs (mode 1) or taps (mode 2): exact in a plain norm, else a few steps towards it.

        :param rhs: [G, S or K, R].
        :param gram: of the outputs, [G, R, R].
        :param penalty: [G, R].
        :param image: Sigma M at ``factors``.
        :return: the factor, and Sigma M there.
        """
        other = factors[3 - mode]
        system = _ridged((other.mT @ other).mul_(gram), self.cutoff)
        system.diagonal(dim1=1, dim2=2).add_(penalty)
        lower = cholesky(system)
        del system
        covariance = self.covariance
        if image is None or covariance is None:
            return torch.cholesky_solve(rhs.mT, lower).mT, None
        fixed, small_gram = other.to(self.cross), gram.to(self.cross)
        sizes = (factors.inp.shape[1], factors.tap.shape[1])

        def contract(image: Tensor) -> Tensor:
            parts = []
            for block in _blocks(image.shape[2]):
                mixed = (image @ small_gram[:, :, block]).unflatten(1, sizes)
                mixed *= fixed[:, None, :, block] if mode == 1 else fixed[:, :, None, block]
                parts.append(mixed.sum(dim=3 - mode).double())
                del mixed
            return torch.cat(parts, dim=2)

        def precondition(x: Tensor) -> Tensor:
            x = torch.cholesky_solve(x.mT, lower).mT
            return self.whitener @ x if mode == 1 and self.whitener is not None else x

        def apply(x: Tensor) -> Tensor:
            return self._seen(covariance, x, fixed) if mode == 1 else self._seen(covariance, fixed, x)

        steps = self.input_steps if mode == 1 else self.tap_steps
        residual = rhs - contract(image) - penalty[:, None] * factors[mode]
        return _descend(factors[mode], image, residual, penalty, apply, contract, precondition, steps)


def largest_block(rank: int) -> int:
    """How many of R components are worked on at a time under a covariance.

    >>> largest_block(32), largest_block(512)
    (64, 128)

    :param rank: R.
    """
    return max(_LEAST, -(-rank // _BLOCKS))


def _blocks(rank: int) -> list[slice]:
    step = largest_block(rank)
    return [slice(begin, begin + step) for begin in range(0, rank, step)]


def _ridged(gram: Tensor, cutoff: float | None) -> Tensor:
    """[G, R, R] with its diagonal raised, in place, by the share of it that is rounding anyway."""
    if cutoff is not None:
        gram.diagonal(dim1=-2, dim2=-1).mul_(1 + cutoff)
    return gram


def _descend(
    x: Tensor,
    image: Tensor,
    residual: Tensor,
    penalty: Tensor,
    apply: Callable[[Tensor], Tensor],
    contract: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Preconditioned conjugate gradients that carry the image of the iterate along, in the place of the one given.

    Unlike :func:`conjugate_gradient` it returns the image, so that the next block needs no covariance product.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=(1, 2), keepdim=True)

    direction = z = precondition(residual)
    rho = dot(residual, z)
    for step in range(steps):
        moved = apply(direction)
        curve = contract(moved) + penalty[:, None] * direction
        curvature = dot(direction, curve)
        alpha = torch.where((curvature > 0) & (rho > 0), rho / curvature, torch.zeros_like(rho))
        x = x + alpha * direction
        image.addcmul_(alpha.to(moved), moved)
        del moved
        if step + 1 == steps:
            break
        residual = residual - alpha * curve
        z = precondition(residual)
        rho, previous = dot(residual, z), rho
        direction = z + torch.where(previous > 0, rho / previous, torch.zeros_like(rho)) * direction
    return x, image
