# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Multiply-accumulates of whole models: of every operator that multiplies tensors, fused ones included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import flop_counter, module_tracker
from typing_extensions import Self

aten = torch.ops.aten


@contextmanager
def counting() -> Iterator[Callable[[], float]]:
    """Count the multiply-accumulates of all that runs meanwhile, on any device and by whatever kernels.

    Counted are matrix products, convolutions, attention and recurrent layers; what is added, normalised or activated
    is not, nor are the products with a causal mask left out.

    >>> with counting() as macs:
    ...     _ = torch.nn.Linear(3, 5)(torch.zeros(2, 3))
    >>> macs()
    30.0

    :return: tells the number so far.
    """
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    counter.mod_tracker = _Whole()
    with counter:
        yield lambda: counter.get_total_flops() / 2


class _Whole(module_tracker.ModuleTracker):
    """Follows no modules: the hooks that do fail on views of parameters that are made without gradients."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        pass


# The counter has no formulas for what follows. Formulas are in floating-point operations: two for one MAC.


def _raw(formula: Callable[..., int]) -> Callable[..., int]:
    """Have a formula called with tensors instead of shapes."""
    formula._get_raw = True  # type: ignore[attr-defined]
    return formula


def _lengths(tokens: Tensor) -> list[int]:
    """The number of tokens of each sequence: of [B, N, E], or nested."""
    if tokens.is_nested:
        return [int(each) for each in tokens._nested_tensor_size()[:, 0]]
    return [tokens.shape[1]] * tokens.shape[0]


def _attention(queries: Sequence[int], keys: Sequence[int], width: int) -> int:
    """Scores, and values by scores, of all heads together."""
    return sum(4 * one * other * width for one, other in zip(queries, keys, strict=True))


@_raw
def _multi_head_attention(query: Tensor, key: Tensor, value: Tensor, width: int, *args: Any, **kwargs: Any) -> int:
    queries, keys, values = map(_lengths, (query, key, value))
    projected = width * width * (2 * sum(queries) + sum(keys) + sum(values))
    return 2 * projected + _attention(queries, keys, width)


_ENCODER_WEIGHTS = (3, 5, 14, 16)
"""Which arguments of a fused encoder layer are the weights of its four products."""


@_raw
def _encoder_layer(*args: Any, **kwargs: Any) -> int:
    lengths, width = _lengths(args[0]), args[1]
    weights = sum(args[place].numel() for place in _ENCODER_WEIGHTS)
    return 2 * weights * sum(lengths) + _attention(lengths, lengths, width)


def _recurrent_layer(
    inputs: Sequence[int], weight: Sequence[int], recurrent: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    return 2 * prod(inputs[:-1]) * (prod(weight) + prod(recurrent))


def _recurrent(inputs: Sequence[int], weights: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> int:
    return 2 * prod(inputs[:-1]) * sum(prod(each) for each in weights if len(each) == 2)


def _products(query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: Any, **kwargs: Any) -> int:
    # [B, heads, N, E]; where queries have more heads than keys, several share one
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _matrix_vector(matrix: Sequence[int], vector: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return 2 * prod(matrix)


def _added(added: Any, first: Sequence[int], second: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return 2 * prod(first) * (second[-1] if len(second) > 1 else 1)


def _grouped(first: Sequence[int], second: Sequence[int], *args: Any, **kwargs: Any) -> int:
    # the groups are parts of an axis, unless both have an axis for them
    return 2 * prod(first if len(second) == 3 else first[-2:]) * second[-1]


def _trilinear(first: Sequence[int], weight: Sequence[int], second: Sequence[int], *args: Any, **kwargs: Any) -> int:
    # the sum over s and t of first[n, s] * weight[o, s, t] * second[n, t]
    _, between, _ = weight
    return 2 * prod(first) // between * (prod(weight) + prod(weight[:2]))


_FORMULAS = {
    getattr(aten, name): formula
    for name, formula in {
        "_scaled_dot_product_flash_attention": _products,
        "_scaled_dot_product_flash_attention_for_cpu": _products,
        "_scaled_dot_product_efficient_attention": _products,
        "_scaled_dot_product_cudnn_attention": _products,
        "_scaled_dot_product_fused_attention_overrideable": _products,
        "_scaled_dot_product_attention_math_for_mps": _products,
        "_native_multi_head_attention": _multi_head_attention,
        "_transformer_encoder_layer_fwd": _encoder_layer,
        "mkldnn_rnn_layer": _recurrent_layer,
        "_cudnn_rnn": _recurrent,
        "miopen_rnn": _recurrent,
        "mv": _matrix_vector,
        "dot": _matrix_vector,
        "addmv": _added,
        "addbmm": _added,
        "_addmm_activation": _added,
        "_int_mm": flop_counter.mm_flop,
        "_grouped_mm": _grouped,
        "_trilinear": _trilinear,
    }.items()
    if hasattr(aten, name)
}
"""By operator; not every version of torch has all of them."""
