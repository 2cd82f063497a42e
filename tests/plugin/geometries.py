# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Hypothesis strategies for layers of every geometry that torch allows."""

from __future__ import annotations

from hypothesis import strategies as st
from torch import nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MODES = ("zeros", "reflect", "replicate", "circular")


@st.composite
def convolutions(draw):
    """A convolution with at least two channels in each group, and the size of an input that it takes."""
    count = draw(st.sampled_from((1, 2, 3)))
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    kernel = tuple(draw(st.integers(1, 4 if count < 3 else 3)) for _ in range(count))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(count))
    if draw(st.booleans()):
        padding, stride = draw(st.sampled_from(("same", "valid"))), (1,) * count
    else:
        padding = tuple(draw(st.integers(0, 2)) for _ in range(count))
        stride = tuple(draw(st.integers(1, 3)) for _ in range(count))
    mode = draw(st.sampled_from(MODES))
    conv = CONVOLUTIONS[count](
        groups * draw(st.integers(2, 5)),
        groups * draw(st.integers(1, 6)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    size = tuple((k - 1) * d + 1 + draw(st.integers(2, 4)) for k, d in zip(kernel, dilation, strict=True))
    return conv, size
