# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Chains in the basis in which rounding the tensors between their stages costs least; what they compute stays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lowrank_plugin.chains.record import record_of
from lowrank_plugin.data.batches import call, evaluating, take_batches
from lowrank_plugin.layers.kinds import Adapters, Writable, writable
from lowrank_plugin.plugins import LAYER_ADAPTERS, manager
from lowrank_plugin.support.copying import copied
from lowrank_plugin.support.hooking import hooked
from lowrank_plugin.support.progress import Progress, Steps, no_progress

logger = logging.getLogger(__name__)

SAMPLES = 128
"""Samples that the tensors between the stages are seen on."""

_FLOOR = 1e-3
"""Standard deviations, as a share of the largest, below which directions count as equally small."""

Stage = tuple[nn.Module, Writable]
"""A stage of a chain with the adapter by which it is seen and written to."""


def rotate_chains(
    compressed: nn.Module,
    batches: object,
    *,
    samples: int = SAMPLES,
    inplace: bool = False,
    progress: Progress = no_progress,
) -> nn.Module:
    r"""Prepare chains for int8: give the tensors between their stages channels that are all of the same size.

    Between two stages there is no activation function, so any invertible T may be put there: the first stage becomes
    T W1 and the second W2 T^-1, and the network computes the same. Activations have one step for all channels, set by
    the widest, and in the bases that solvers return a few channels are many times wider than the rest. With the second
    moments C of the tensor and B of the second stage's weights (W2' W2), rounding noise in the output grows with
    :math:`\max_i (T C T')_{ii} \cdot tr(T^{-\top} B T^{-1})`. The bound from below is
    :math:`(tr (C^{1/2} B C^{1/2})^{1/2})^2` over the number of channels, and it is met by the balanced basis [1], in
    which both moments are the same diagonal matrix, followed by a rotation that spreads every direction over all
    channels, as Hadamard matrices do for language models [2].

    [1] Moore, "Principal component analysis in linear systems: controllability, observability, and model reduction",
    IEEE Transactions on Automatic Control 26(1), 1981, section IV.
    [2] Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", NeurIPS 2024, arXiv:2404.00456.

    >>> import lowrank_plugin
    >>> x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    >>> small = lowrank_plugin.decompose(nn.Sequential(nn.Linear(8, 8)), [x], ranks={"0": 4}, rank_multiple=1)
    >>> ready = rotate_chains(small, [x])
    >>> torch.allclose(ready(x), small(x), atol=1e-5)
    True

    :param compressed: a model that came out of :func:`lowrank_plugin.decompose`, not quantized yet.
    :param batches: calibration data, as for :func:`lowrank_plugin.decompose`.
    :param samples: the most samples used.
    :param inplace: change the model itself.
    :param progress: shows a bar.
    :return: the model that computes the same, up to rounding. Grouped stages, such as CPD's depthwise ones, and those
        in half precision are left as they are.
    :raises LowRankError: where the model carries no record of its chains, or the data cannot be used.
    """
    model = compressed if inplace else copied(compressed)
    pairs = list(_pairs(model, manager().registered(LAYER_ADAPTERS)))
    if not pairs:
        return model
    steps, taken = Steps(progress, manager().observe), take_batches(model, batches, samples)
    moments = _second_moments(model, [first for first, _ in pairs], taken, steps)
    for index, (first, second) in enumerate(pairs):
        if index in moments and bool(torch.isfinite(moments[index]).all()):
            _change_basis(first, second, moments[index])
    logger.info("The basis between %d pairs of stages is changed.", len(pairs))
    return model


def _pairs(model: nn.Module, adapters: Adapters) -> Iterator[tuple[Stage, Stage]]:
    """Stages that follow on each other and may exchange a basis."""
    for name in (name for each in record_of(model).rounds for name in each.chains):
        chain = model.get_submodule(name)
        stages = list(chain) if isinstance(chain, nn.Sequential) else []
        for first, second in pairwise(_open(stage, adapters) for stage in stages):
            if first is not None and second is not None:
                yield first, second


def _open(stage: nn.Module, adapters: Adapters) -> Stage | None:
    """A stage whose basis may be changed: all of its channels meet, and half precision would lose digits."""
    adapter = None if parametrize.is_parametrized(stage) else writable(stage, adapters)
    if adapter is None or len(adapter.kernel(stage)) != 1 or stage.get_parameter("weight").dtype.itemsize < 4:
        return None
    return stage, adapter


def _second_moments(
    model: nn.Module, stages: Sequence[Stage], batches: Sequence[object], steps: Steps
) -> dict[int, Tensor]:
    """The sums of squares and products of the stages' outputs, about zero: float64 [R, R] by place."""
    sums: dict[int, Tensor] = {}

    def watching(index: int, adapter: Writable) -> Callable[..., None]:
        def hook(stage: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor) -> None:
            vectors = adapter.outputs(stage, output).flatten(0, -2)
            sums[index] = sums.get(index, 0) + (vectors.mT @ vectors).double()

        return hook

    hooks = {stage: watching(index, adapter) for index, (stage, adapter) in enumerate(stages)}
    with evaluating(model), hooked(hooks):
        for batch in steps.each("rotate", "Rotating chains", batches):
            call(model, batch)
    return sums


@torch.no_grad()
def _change_basis(first: Stage, second: Stage, moment: Tensor) -> None:
    (maker, makes), (reader, reads) = first, second
    [made], [read] = makes.kernel(maker).double(), reads.kernel(reader).double()
    columns = read.movedim(1, 0).flatten(1)
    there, back = balanced(moment, columns @ columns.mT)
    made = torch.tensordot(there, made, dims=1)
    read = torch.tensordot(read, back, dims=([1], [0])).movedim(-1, 1)
    # training wants weights of one size in both stages; rounding does not mind
    sizes = [tensor.square().mean().sqrt() for tensor in (made, read)]
    scale = (sizes[1] / sizes[0]).sqrt() if min(sizes) > 0 else 1.0
    maker.get_parameter("weight").copy_(makes.to_weight(maker, (made * scale)[None]))
    bias = maker._parameters.get("bias")
    if bias is not None:
        bias.copy_(there @ bias.double() * scale)
    reader.get_parameter("weight").copy_(reads.to_weight(reader, (read / scale)[None]))


def balanced(moment: Tensor, reading: Tensor) -> tuple[Tensor, Tensor]:
    """The basis in which a tensor and what reads it have equal second moments, spread evenly over the channels.

    >>> moment, reading = torch.diag(torch.tensor([16.0, 1.0])).double(), torch.eye(2).double()
    >>> there, back = balanced(moment, reading)
    >>> (there @ moment @ there.mT).diagonal(), (back.mT @ reading @ back).diagonal()
    (tensor([2.5000, 2.5000], dtype=torch.float64), tensor([2.5000, 2.5000], dtype=torch.float64))

    :param moment: second moments of the tensor [R, R], float64.
    :param reading: second moments of the weights that read each channel [R, R], float64.
    :return: the change of basis [R, R] and its inverse.
    """
    values, vectors = torch.linalg.eigh(moment)
    spread = values.clamp_min(_FLOOR**2 * values[-1].clamp_min(torch.finfo(values.dtype).tiny)).sqrt()
    root = vectors * spread
    squares, basis = torch.linalg.eigh(root.mT @ reading @ root)
    scale = squares.clamp_min(_FLOOR**4 * squares[-1].clamp_min(torch.finfo(values.dtype).tiny)).pow(0.25)
    rotation = spreading(len(values)).to(values)
    return rotation @ (scale[:, None] * basis.mT) @ (vectors / spread).mT, (root @ basis / scale) @ rotation.mT


def spreading(size: int) -> Tensor:
    """An orthogonal matrix whose entries are all about equally large, at most the square root of 2 over the mean.

    A Hadamard matrix where the size is a power of two; otherwise its odd factor is that of a discrete Hartley
    transform (Bracewell, "Discrete Hartley transform", JOSA 73(12), 1983).

    >>> spreading(2)
    tensor([[ 0.7071,  0.7071],
            [ 0.7071, -0.7071]], dtype=torch.float64)

    :param size: rows and columns.
    :return: [size, size], float64.
    """
    odd = size // (size & -size)
    steps = torch.arange(odd, dtype=torch.float64)
    angles = 2 * torch.pi / odd * (steps[:, None] * steps % odd)
    matrix = angles.cos() + angles.sin()
    while len(matrix) < size:
        matrix = torch.kron(matrix.new_tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / size**0.5
