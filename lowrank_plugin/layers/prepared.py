# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Subclasses of layers that only prepare the weight or pad the input: they are seen as the plain layer they come to.

What such a class computes is not read from its code but tried: its forward must call the function of its base once,
on the input and the weight that a plain layer could have, and put out what that layer puts out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lowrank_hooks import Factorization, LayerAdapter, StageShape, Window
from lowrank_plugin.layers.adapters import CONVOLUTIONS, PADS

_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_FUNCTIONS = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d, "linear": nn.Linear}
"""By name: NNCF 2 puts functions of its own in the place of torch's, which call these."""

_CLOSE = 8
"""How many times the precision of its dtype an output may differ by, relative to its largest value."""

UNEVEN = "its padding depends on the size of its input"
TRAINED = "it computes its weight anew in each forward, and is in training mode; in eval mode the weight is folded"


@dataclass(frozen=True)
class Plain:
    """The plain layer that a module computes the same as.

    :param layer: of torch.nn; it may share its parameters with the module.
    :param pad: zeros around the input, as ``F.pad`` wants them; empty for none.
    :param folded: whether its weight is not the module's parameter, but computed from it.
    """

    layer: nn.Module
    pad: tuple[int, ...] = ()
    folded: bool = False

    def padded(self, inputs: Tensor) -> Tensor:
        """The input as the layer gets it."""
        return F.pad(inputs, self.pad) if self.pad else inputs

    def __call__(self, inputs: Tensor) -> Tensor:
        """What the module puts out."""
        output: Tensor = self.layer(self.padded(inputs))
        return output

    def to_json(self) -> dict[str, Any]:
        """What of the layer the attributes of the module do not tell."""
        padding = getattr(self.layer, "padding", ())
        return {"padding": padding if isinstance(padding, str) else list(padding), "pad": list(self.pad)}


def plain_from_json(module: Any, base: type, value: Mapping[str, Any]) -> Plain:
    """The plain layer that stood for a module, with the weight of the module in the place of a folded one.

    >>> plain_from_json(nn.Linear(2, 3), nn.Linear, {"padding": [], "pad": []}).layer
    Linear(in_features=2, out_features=3, bias=True)

    :param module: an instance of a subclass of ``base``.
    :param base: the class of the plain layer.
    :param value: what :meth:`Plain.to_json` told of it.
    """
    padding = value["padding"]
    layer = _layer(module, base, module.weight, padding if isinstance(padding, str) else tuple(padding))
    return Plain(layer, tuple(value["pad"]))


class PlainAdapter:
    """Sees a module as the plain layer that stands for it, by the adapter of that layer.

    :param adapter: that of the plain layer.
    :param plain: what stands for the module.
    """

    def __init__(self, adapter: LayerAdapter, plain: Plain) -> None:
        self._adapter: Any = adapter
        self.plain = plain

    def refusal(self, module: nn.Module) -> str | None:
        """That of the plain layer."""
        refusal: str | None = self._adapter.refusal(self.plain.layer)
        return refusal

    def kernel(self, module: nn.Module) -> Tensor:
        """[G, T, S, *kernel], of the folded weight."""
        kernel: Tensor = self._adapter.kernel(self.plain.layer)
        return kernel

    def windows(self, module: nn.Module) -> tuple[Window, ...] | None:
        """Those of the plain layer, with the zeros before the input moved into them."""
        known = getattr(self._adapter, "windows", None)
        found: tuple[Window, ...] | None = known(self.plain.layer) if known else None
        if found is None or not self.plain.pad:
            return found
        before = self.plain.pad[::2][::-1]
        return tuple(
            Window(each.taps, each.stride, each.dilation, each.before + more)
            for each, more in zip(found, before, strict=True)
        )

    def patches(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """[B, *out, G, S, *kernel]."""
        patches: Tensor = self._adapter.patches(self.plain.layer, self.plain.padded(inputs))
        return patches

    def outputs(self, module: nn.Module, outputs: Tensor) -> Tensor:
        """[B, *out, G, T]."""
        view: Tensor = self._adapter.outputs(self.plain.layer, outputs)
        return view

    def positions(
        self, module: nn.Module, stages: Sequence[StageShape], inputs: Tensor, outputs: Tensor
    ) -> tuple[int, ...]:
        """The first stages run on the padded input."""
        counts: tuple[int, ...] = self._adapter.positions(self.plain.layer, stages, self.plain.padded(inputs), outputs)
        return counts

    def build(self, module: nn.Module, factorization: Factorization, bias: Tensor | None) -> nn.Sequential:
        """The chain of the plain layer, behind a layer that pads where that is needed."""
        chain: nn.Sequential = self._adapter.build(self.plain.layer, factorization, bias)
        if not self.plain.pad:
            return chain
        return nn.Sequential(PADS[len(self.plain.pad) // 2](self.plain.pad), *chain)

    def to_dense(self, module: nn.Sequential) -> nn.Module:
        """The plain layer."""
        dense: nn.Module = self._adapter.to_dense(module)
        return dense


class Trial:
    """Whether a module computes what a plain layer does, seen from its forward at every call in a run.

    :param module: the module.
    :param base: the class of the plain layer.
    """

    def __init__(self, module: nn.Module, base: type) -> None:
        self._module, self._base = module, base
        self.plain: Plain | None = None
        self.reason: str | None = None
        self._training, self._failed = module.training, False

    def run(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the module's forward and look at what it does.

        :param forward: the forward.
        :param args: its arguments.
        :param kwargs: likewise.
        """
        with _recording() as calls:
            output = forward(*args, **kwargs)
        if not self._failed and not self._holds(forward, args, kwargs, output, calls):
            self.plain, self._failed = None, True
        return output

    def _holds(
        self,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: object,
        calls: Sequence[tuple[type, Mapping[str, Any]]],
    ) -> bool:
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            return False
        [inputs], first = args, self.plain is None
        if first:
            self.plain = self._found(inputs, calls)
        if self.plain is None or not _same(self.plain(inputs), output):
            return False
        if self.plain.folded and self._training:
            self.reason = TRAINED
        return not first or self._holds_elsewhere(forward, inputs)

    def _found(self, inputs: Tensor, calls: Sequence[tuple[type, Mapping[str, Any]]]) -> Plain | None:
        """The plain layer that one call of its function makes the module to; None where it is none."""
        module: Any = self._module
        if len(calls) != 1 or calls[0][0] is not self._base:
            return None
        _, call = calls[0]
        weight, folded = call["weight"], call["weight"] is not module.weight
        if call.get("bias") is not module.bias or weight.shape != module.weight.shape:
            return None
        extra = {*module._parameters, *module._buffers} - {"weight", "bias"}
        inside = [each for child in module.children() for each in (*child.parameters(), *child.buffers())]
        if inside or (extra and not folded):
            return None  # what is of no effect now, such as an adapter of zeros, may be trained
        if self._base is nn.Linear:
            return Plain(_layer(module, nn.Linear, weight, ()), folded=folded) if _same(call["input"], inputs) else None
        axes = len(module.kernel_size)
        told = {key: _each(call.get(key, 1), axes) for key in ("stride", "dilation")}
        mine = {key: _each(getattr(module, key), axes) for key in told}
        pad, padding = _zeros_around(call["input"], inputs, axes), call.get("padding", 0)
        if told != mine or call.get("groups", 1) != module.groups or pad is None:
            return None
        if not isinstance(padding, str):
            padding = _each(padding, axes)
            if pad[::2] == pad[1::2]:
                # from the last axis to the first
                padding, pad = tuple(a + b for a, b in zip(padding, pad[::2][::-1], strict=True)), ()
        return Plain(_layer(module, self._base, weight, padding), pad if any(pad) else (), folded)

    def _holds_elsewhere(self, forward: Callable[..., Any], inputs: Tensor) -> bool:
        """Whether other values and other sizes change nothing in what is prepared."""
        axes = 0 if self._base is nn.Linear else inputs.dim() - 2
        first, plain = inputs.dim() - axes, self.plain
        generator = torch.Generator().manual_seed(0)
        for longer in (0, 1) if axes else (0,):
            size = (*inputs[:1].shape[:first], *(each + longer for each in inputs.shape[first:]))
            other = torch.randn(size, generator=generator).to(inputs)
            if plain is None or not _same(plain(other), forward(other)):
                self.reason = UNEVEN if longer else None
                return False
        return True


class _Recorder(TorchFunctionMode):
    """Notes the calls of the functions that layers are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[type, Mapping[str, Any]]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kind = _FUNCTIONS.get(getattr(func, "__name__", ""))
        if kind is not None:
            self.calls.append((kind, dict(zip(_ARGUMENTS, args, strict=False)) | (kwargs or {})))
        return func(*args, **(kwargs or {}))


@contextmanager
def _recording() -> Iterator[list[tuple[type, Mapping[str, Any]]]]:
    with _Recorder() as recorder:
        yield recorder.calls


def _layer(module: Any, base: type, weight: Tensor, padding: str | tuple[int, ...]) -> nn.Module:
    has_bias = module.bias is not None
    layer: nn.Module
    if base is nn.Linear:
        layer = nn.Linear(module.in_features, module.out_features, has_bias, device="meta")
    else:
        layer = base(
            module.in_channels,
            module.out_channels,
            tuple(module.kernel_size),
            stride=module.stride,
            padding=padding,
            dilation=module.dilation,
            groups=module.groups,
            bias=has_bias,
            device="meta",
        )
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = module.bias
    return layer.eval()


def _each(value: Any, axes: int) -> tuple[int, ...]:
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * axes if len(numbers) == 1 else numbers


def _zeros_around(padded: Tensor, inputs: Tensor, axes: int) -> tuple[int, ...] | None:
    """How many zeros there are around an input, as ``F.pad`` wants them; None where something else was done to it."""
    if inputs.dim() != axes + 2 or padded.dim() != inputs.dim() or padded.shape[:2] != inputs.shape[:2]:
        return None
    pad: list[int] = []
    for axis in range(inputs.dim() - 1, 1, -1):
        more = padded.shape[axis] - inputs.shape[axis]
        if more < 0:
            return None
        # whichever way most networks pad; what comes out is compared anyway
        pad += [more // 2, more - more // 2]
    return tuple(pad) if torch.equal(F.pad(inputs, pad), padded) else None


def _same(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    error, size = (found - wanted).abs().max(), wanted.abs().max()
    return bool(error <= _CLOSE * torch.finfo(wanted.dtype).eps * size)


def tried_out(modules: Mapping[str, nn.Module], known: Mapping[type, object]) -> dict[str, tuple[nn.Module, type]]:
    """The modules that may come to a plain layer, by their class: a subclass that is called as its base is.

    :param modules: modules by name, of other classes than the known ones.
    :param known: the classes that adapters are for.
    :return: each with the class of the plain layer.
    """
    found = {}
    for name, module in modules.items():
        base = next((each for each in (*CONVOLUTIONS.values(), nn.Linear) if isinstance(module, each)), None)
        called = type(module).__call__ is nn.Module.__call__ and "forward" not in vars(module)
        if (
            base is not None
            and base in known
            and type(module) is not base
            and called
            and module._parameters.get("weight") is not None
        ):
            found[name] = (module, base)
    return found
