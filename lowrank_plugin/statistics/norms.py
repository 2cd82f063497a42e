# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The norm of a layer from what was seen of its inputs and of the gradients of its output."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_hooks import NORMS, ErrorNorm, Norm, NormKind, SampledNorm
from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.statistics.vectors import Inputs, Vectors

DAMPING = 1.0
"""Multiple of the mean eigenvalue added to the second moments of gradients. They hold only for small changes, and have
hardly a direction more than the network has classes: with 0.01, what is lost in the others ruins some networks."""


def make_norm(inputs: Inputs | None, gradient: Tensor | None, like: Tensor) -> ErrorNorm:
    """The norm of a layer from its moments: the centred covariance, shrunk as far as it is uncertain.

    :param inputs: the moments of its input; None gives the Frobenius norm.
    :param gradient: second moments of the layer's output gradients [G, T, T], for the two-sided norm; or None.
    :param like: a tensor whose dtype and device the covariance takes.
    """
    if inputs is None:
        return Norm()
    outputs = None if gradient is None else damped(gradient).to(like)
    if isinstance(inputs, Vectors):
        root, width = inputs.root, inputs.rows.shape[-1]
        # products of the vectors with each other: but for zeros, the covariance has the same eigenvalues
        dual = root @ root.mT
        weight = shrinkage(dual, inputs.count, width)
        ridge = weight * dual.diagonal(dim1=-2, dim2=-1).sum(dim=-1) / width
        return SampledNorm((root * (1 - weight).sqrt()[:, None, None]).to(like), ridge.to(like), outputs)
    covariance = inputs.covariance
    weight = shrinkage(covariance, inputs.count, covariance.shape[-1])[:, None]
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(dim=-1, keepdim=True)
    # in place, because this may be as large as everything else together
    covariance.mul_(1 - weight.unsqueeze(-1)).diagonal(dim1=-2, dim2=-1).add_(weight * mean)
    return Norm(covariance.to(like), outputs)


def damped(gradient: Tensor) -> Tensor:
    """Second moments of gradients, kept away from singular.

    >>> damped(torch.diag(torch.tensor([1.0, 0.0]))[None])[0].diagonal()
    tensor([1.5000, 0.5000])

    :param gradient: [G, T, T].
    """
    mean = gradient.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    return gradient + DAMPING * mean[:, None, None] * torch.eye(gradient.shape[-1]).to(gradient)


def shrinkage(covariance: Tensor, count: int, width: int) -> Tensor:
    """The weight of the identity in an estimate of a covariance from few samples, by oracle approximation.

    >>> shrinkage(torch.diag(torch.tensor([4.0, 1.0]))[None], 10**9, 2) < 1e-6
    tensor([True])

    Chen, Wiesel, Eldar and Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE Transactions on Signal
    Processing 58(10), 2010, eq. 23.

    :param covariance: [G, D, D], or another matrix with the same eigenvalues but for zeros.
    :param count: how many vectors it was computed from.
    :param width: D.
    :return: [G], from 0 to 1.
    """
    trace, squares = _traces(covariance)
    numerator = (1 - 2 / width) * squares + trace**2
    denominator = (count + 1 - 2 / width) * (squares - trace**2 / width)
    return torch.where(denominator > 0, numerator / denominator, torch.ones_like(trace)).clamp(0, 1)


def effective_rank(norm: ErrorNorm) -> float:
    """In how many directions inputs vary: the participation ratio ``tr(C)^2 / tr(C^2)``, from 1 to the width.

    >>> effective_rank(Norm(torch.eye(3)[None])), effective_rank(SampledNorm(torch.eye(3)[None, :2], torch.zeros(1)))
    (3.0, 2.0)

    Gao et al., "A theory of multineuronal dimensionality, dynamics and measurement", bioRxiv 214262, 2017, eq. 5.

    :param norm: with a covariance; several groups are averaged, those that do not vary count as 0.
    :raises ValueError: where it has none.
    """
    if isinstance(norm, SampledNorm):
        traces, squares = _traces(norm.vectors @ norm.vectors.mT)
        added = norm.ridge * norm.vectors.shape[-1]
        traces, squares = traces + added, squares + norm.ridge * (2 * traces + added)
    else:
        if norm.covariance is None:
            msg = "A norm without a covariance says nothing of how inputs vary."
            raise ValueError(msg)
        traces, squares = _traces(norm.covariance)
    return float(torch.where(squares > 0, traces.square() / squares, torch.zeros_like(squares)).mean())


def _traces(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Of [G, D, D] and of its square, [G]."""
    return covariance.diagonal(dim1=-2, dim2=-1).sum(dim=-1), covariance.square().sum(dim=(-2, -1))


def norm_of(wanted: str | None, known: bool) -> NormKind:
    """The norm of the errors.

    >>> norm_of(None, known=False).name
    'frobenius'

    :param wanted: what the user asked for; None takes the covariance norm where it can be had.
    :param known: whether there is data, or statistics of it.
    :raises ConfigurationError: where the norm needs data that is not there.
    """
    norm = NORMS[wanted or ("covariance" if known else "frobenius")]
    if norm.weighted and not known:
        msg = f'The norm "{norm.name}" needs calibration data; give batches or statistics, or use "frobenius".'
        raise ConfigurationError(msg)
    return norm
