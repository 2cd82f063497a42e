# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The norm in which a layer's approximation error is measured."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

_BLOCK = 512
"""Columns that a squared norm is computed for at a time."""


@dataclass(frozen=True)
class Norm:
    r"""The operator norm :math:`\|W\|^2 = \mathrm{tr}(\Gamma W \Sigma W^\top)`, one for every group of a layer.

    With both matrices absent it is the Frobenius norm; with the centred covariance :math:`\Sigma` of the input
    patches it is the mean squared change of the layer's output ([1], eq. 1); with the second moment
    :math:`\Gamma` of the output gradients as well it is the two-sided (K-FAC) norm.

    [1] Kalle et al., "Distribution-Aware Tensor Decomposition for Compression of Convolutional Neural Networks",
    NeurIPS 2025, arXiv:2511.04494.

    >>> import torch
    >>> w = torch.tensor([[[3.0, 4.0]]])
    >>> Norm().squared(w)
    tensor([25.])
    >>> Norm(covariance=torch.diag(torch.tensor([1.0, 0.0]))[None]).squared(w)
    tensor([9.])

    :param covariance: symmetric positive semi-definite [G, S*K, S*K], columns ordered (channel, tap) as in
        ``kernel.flatten(2)``; a singular one is normal. None stands for the identity.
    :param gradient: symmetric positive semi-definite [G, T, T]; None stands for the identity.
    """

    covariance: Tensor | None = None
    gradient: Tensor | None = None

    @property
    def name(self) -> str:
        """The name users type: ``"frobenius"``, ``"covariance"`` or ``"two-sided"``."""
        if self.gradient is not None:
            return "two-sided"
        return "frobenius" if self.covariance is None else "covariance"

    def apply(self, matrix: Tensor) -> Tensor:
        r"""Return :math:`\Gamma W \Sigma`, half the gradient of the squared norm.

        :param matrix: W, [G, T, S*K].
        :return: [G, T, S*K], in the dtype and on the device of ``matrix``.
        """
        if self.covariance is not None:
            matrix = matrix @ self.covariance.to(matrix)
        if self.gradient is not None:
            matrix = self.gradient.to(matrix) @ matrix
        return matrix

    def squared(self, matrix: Tensor) -> Tensor:
        """Return the squared norm of each group.

        :param matrix: W, [G, T, S*K].
        :return: [G], never below zero.
        """
        if self.covariance is None:
            image = self.apply(matrix)
            return (image * matrix).sum(dim=(-2, -1)).clamp_min(0)
        # Every pair of columns counts twice, so half of the symmetric covariance is enough.
        covariance, total = self.covariance.to(matrix), matrix.new_zeros(matrix.shape[:-2])
        for begin in range(0, matrix.shape[-1], _BLOCK):
            block = slice(begin, begin + _BLOCK)
            image = matrix[..., block] @ covariance[:, block, block]
            image.add_(matrix[..., :begin] @ covariance[:, :begin, block], alpha=2)
            if self.gradient is not None:
                image = self.gradient.to(matrix) @ image
            total = total + image.mul_(matrix[..., block]).sum(dim=(-2, -1))
        return total.clamp_min(0)
