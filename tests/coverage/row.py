# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""One row of the table: a network compressed, and all that is told about it checked."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import oracles
import torch
from network import Network
from torch import nn
from torch.nn.modules.conv import _ConvNd

import lowrank_plugin
from lowrank_plugin.errors import BudgetError

SHARES = (0.7, 0.85, 0.95)
"""Of the MACs, that may remain; the next one is asked for where one cannot be met."""
SECTION: Mapping[str, Any] = {
    "rank_multiple": 1,
    "decomposers": ["svd", "tucker2"],
    "norm": "covariance",
}
TOLERANCE = 1e-3
"""Of outputs at full rank, and of outputs in OpenVINO, relative, float32."""
ROUNDING = 1e-9
"""Of numbers that are counted."""
FULL_RANK_WORK = 3e9
"""How much may be solved for the check at full rank, in multiplications: layers of the largest networks are sampled."""


@dataclass
class Row:
    """What was found out about one network.

    :param family: the section of the table.
    :param name: of the network.
    :param layers: how many layers became chains.
    :param left: how many layers did not, by reason.
    :param macs: ``before`` and ``after`` as told, ``counted_before`` and ``counted_after``, all for one sample, and
        the share that was ``asked``.
    :param parameters: likewise.
    :param full_rank: relative difference of the outputs where layers are factorised without loss.
    :param restored: whether the network that was built from the state is the same, bit for bit.
    :param untouched: whether the user's model is as it was.
    :param exported: relative difference in OpenVINO.
    :param wrong: what is wrong; empty where the row is right.
    :param notes: what could not be checked, and why.
    :param seconds: processor time of the compression itself, and of the whole row.
    """

    family: str
    name: str
    layers: int | None = None
    left: dict[str, int] = field(default_factory=dict)
    macs: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    full_rank: float | None = None
    restored: bool | None = None
    untouched: bool | None = None
    exported: float | None = None
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """One of ``"right"``, ``"wrong"``, and ``"left alone"`` where nothing was compressed."""
        if self.wrong:
            return "wrong"
        return "right" if self.layers else "left alone"

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        return {**asdict(self), "verdict": self.verdict}


def row_of(network: Network, widest: int | None = None) -> Row:
    """Check one network; whatever fails is in the row.

    :param network: the network.
    :param widest: the most columns, inputs times taps, of a layer that is looked at; None for any number.
    """
    row = Row(network.family, network.name, notes=[network.remark] if network.remark else [])
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _tried(row, "the row", lambda: _Check(network, row, widest).run())
    row.seconds["row"] = round(time.process_time() - start, 1)
    return row


class _Check:
    """The steps of one row.

    :param network: the network.
    :param row: what is found out is written there.
    :param widest: see :func:`row_of`.
    """

    def __init__(self, network: Network, row: Row, widest: int | None) -> None:
        self._network, self._row = network, row
        self._model = self._made()
        self._ignored = _wider(self._model, widest)
        torch.manual_seed(1)
        self._batch = network.batch()
        oracles.settle(self._model, self._batch)
        self._samples = _samples(self._batch)
        self._wanted = oracles.outputs(self._model, self._batch, network.heads)

    def run(self) -> None:
        """All steps; those that need a compressed network only where there is one."""
        if not all(bool(each.isfinite().all()) for each in self._wanted):
            self._row.notes.append("its own outputs are not finite")
        if not any(bool(each.any()) for each in self._wanted):
            self._row.wrong.append("it puts out zeros, so that nothing can be said of it")
        before = oracles.Snapshot(self._model)
        small = self._compressed()
        if small is not None:
            _tried(self._row, "the counts", lambda: self._counts(small))
            _tried(self._row, "restoring", lambda: self._restores(small))
            _tried(self._row, "full rank", lambda: self._full_rank(small))
        changes = before.changes()
        self._row.untouched = not changes
        if changes:
            self._row.wrong.append(f"the user's model is changed: {', '.join(changes[:3])}")
        if small is not None:
            self._exports(small)

    def _made(self) -> nn.Module:
        torch.manual_seed(0)
        return self._network.make().eval()

    def _compressed(self) -> nn.Module | None:
        start = time.process_time()
        for share in SHARES:
            section = {**SECTION, "budget": {"macs": share}, "ignored_scopes": self._ignored, **self._network.section}
            try:
                small = lowrank_plugin.decompose(self._model, [self._batch], **section)
            except BudgetError as error:
                self._row.notes.append(f"{share} of the MACs cannot be met: {_short(error)}")
                continue
            self._row.macs["asked"] = share
            self._row.seconds["compression"] = round(time.process_time() - start, 1)
            self._tell(lowrank_plugin.report(small).to_dict())
            return small
        section = {**SECTION, "budget": {"error": 0.5}, "ignored_scopes": self._ignored, **self._network.section}
        self._tell(lowrank_plugin.plan(self._model, [self._batch], **section) | {"layers": {}})
        return None

    def _tell(self, told: Mapping[str, Any]) -> None:
        chains = [name for name, layer in told["layers"].items() if layer["rank"]]
        dense = [layer["status"] for layer in told["layers"].values() if not layer["rank"]]
        skipped = [reason for name, reason in told["skipped"].items() if name not in self._ignored]
        if self._ignored:
            self._row.notes.append(f"left out for their time, being wide: {len(self._ignored)} layers")
        reasons = Counter(map(_general, [*skipped, *dense]))
        self._row.layers, self._row.left = len(chains), dict(reasons.most_common())

    def _counts(self, small: nn.Module) -> None:
        row, told = self._row, lowrank_plugin.report(small).to_dict()["model"]
        before, after = told["macs"]
        counted = [oracles.macs(model, self._batch) / self._samples for model in (self._model, small)]
        row.macs |= {"before": before, "after": after, "counted_before": counted[0], "counted_after": counted[1]}
        for when, one, other in (("before", before, counted[0]), ("after", after, counted[1])):
            if abs(one - other) > ROUNDING * other:
                row.wrong.append(f"MACs {when}: {one:.0f} told, {other:.0f} counted")
        if after > before * row.macs["asked"] * (1 + ROUNDING):
            row.wrong.append(f"{after / before:.4f} of the MACs remain where {row.macs['asked']} was asked for")
        sizes = [oracles.parameters(model) for model in (self._model, small)]
        row.parameters = {
            "before": told["parameters"][0],
            "after": told["parameters"][1],
            "counted_before": sizes[0],
            "counted_after": sizes[1],
        }
        for when, one, other in zip(("before", "after"), told["parameters"], sizes, strict=True):
            if one != other:
                row.wrong.append(f"parameters {when}: {one:.0f} told, {other} counted")

    def _restores(self, small: nn.Module) -> None:
        wanted = oracles.outputs(small, self._batch)
        if not oracles.same(wanted, oracles.outputs(small, self._batch)):
            self._row.notes.append("two runs of it differ, so that nothing can be said bit for bit")
            return
        state = json.loads(json.dumps(lowrank_plugin.get_state(small)))
        restored = lowrank_plugin.restore(self._made(), state)
        restored.load_state_dict(small.state_dict())
        self._row.restored = oracles.same(wanted, oracles.outputs(restored, self._batch))
        if not self._row.restored:
            self._row.wrong.append("restored, it puts out something else")

    def _full_rank(self, small: nn.Module) -> None:
        ranks = _full_ranks(self._model, list(lowrank_plugin.report(small).to_dict()["layers"]), self._row)
        if not ranks:
            return
        section: dict[str, Any] = {"decomposers": ["svd"], "norm": "frobenius", "repair": "none", "ranks": ranks}
        exact = lowrank_plugin.decompose(self._model, [self._batch], **section)
        found = oracles.outputs(exact, self._batch, self._network.heads)
        self._row.full_rank = oracles.difference(self._wanted, found)
        if not self._row.full_rank <= TOLERANCE:
            self._row.wrong.append(f"at full rank its outputs differ by {self._row.full_rank:.2g}")

    def _exports(self, small: nn.Module) -> None:
        def distance(model: nn.Module) -> float:
            return oracles.exported(*oracles.part(model, self._batch, self._network.exported))

        row = self._row
        try:
            row.exported = distance(small)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told in the row
            cause = _short(error)
            try:
                distance(self._model)
            except Exception:  # noqa: BLE001 - as above
                row.notes.append(f"neither it nor the original is exported: {cause}")
            else:
                row.wrong.append(f"it is not exported, though the original is: {cause}")
            return
        if not row.exported <= TOLERANCE:
            original = distance(self._model)
            told = f"in OpenVINO its outputs differ by {row.exported:.2g}, those of the original by {original:.2g}"
            (row.notes if original > TOLERANCE else row.wrong).append(told)


def _wider(model: nn.Module, widest: int | None) -> list[str]:
    """Layers with more columns than are looked at."""
    if widest is None:
        return []
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | _ConvNd)}
    return [name for name, layer in layers.items() if layer.weight[0].numel() > widest]


def _full_ranks(model: nn.Module, names: Sequence[str], row: Row) -> dict[str, int]:
    """Full ranks of all layers that a plan looked at, the cheapest first as long as there is time."""
    sizes = {}
    for name in names:
        weight = model.get_submodule(name).weight
        groups = getattr(model.get_submodule(name), "groups", 1)
        sizes[name] = (weight.shape[0] // groups, weight[0].numel(), groups)
    work = {name: groups * min(t, s) ** 2 * max(t, s) for name, (t, s, groups) in sizes.items()}
    ranks, spent = {}, 0
    for name in sorted(work, key=work.__getitem__):
        spent += work[name]
        if spent > FULL_RANK_WORK:
            row.notes.append(f"at full rank: {len(ranks)} of {len(work)} layers, the smallest")
            break
        ranks[name] = min(sizes[name][:2])
    return ranks


def _samples(batch: Any) -> int:
    # of a list of images each is a sample
    return len(batch) if isinstance(batch, list) else len(oracles.tensors(batch)[0])


def _tried(row: Row, what: str, step: Callable[[], None]) -> None:
    try:
        step()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told in the row
        row.wrong.append(f"{what} failed: {_short(error)}")


def _short(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:300] + " ..."


def _general(reason: str) -> str:
    """A reason without the names and numbers of one layer, so that equal ones can be counted."""
    return re.sub(r"\d[\d.,e+-]*\d|\d", "N", re.sub(r"'[^']*'", "'...'", reason)).rstrip(".")
