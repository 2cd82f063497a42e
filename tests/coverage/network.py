# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""What a row of the table is made from: a network with random weights and small inputs for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Network:
    """A network to compress.

    :param family: the section of the table it stands in.
    :param name: of the network, unique in its family.
    :param make: builds it.
    :param batch: makes a batch of a few samples, in the form that users would have it in.
    :param heads: modules whose outputs are compared instead of the network's: where boxes are picked, a rounding may
        exchange two of them.
    :param exported: the module that is exported alone, where the network as a whole is of no use to OpenVINO.
    :param section: settings beside those that all rows share.
    :param remark: what readers of the table should know.
    :param quick: whether it is of the selection that ``make test`` runs.
    """

    family: str
    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[], Any]
    heads: tuple[str, ...] = ()
    exported: str = ""
    section: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""
    quick: bool = False


def pictures(size: int, samples: int = 2, channels: int = 3) -> Callable[[], Tensor]:
    """Smooth random images, [B, C, size, size].

    :param size: height and width.
    :param samples: how many.
    :param channels: of each.
    """

    def make() -> Tensor:
        coarse = torch.randn(samples, channels, max(size // 4, 2), max(size // 4, 2))
        fine = torch.randn(samples, channels, size, size)
        return nn.functional.interpolate(coarse, size, mode="bilinear") + 0.1 * fine

    return make


def tokens(vocabulary: int, length: int = 12, samples: int = 4) -> Tensor:
    """Random tokens, [B, length], integers.

    :param vocabulary: how many different ones.
    :param length: of each sequence.
    :param samples: how many sequences.
    """
    return torch.randint(3, vocabulary, (samples, length))
