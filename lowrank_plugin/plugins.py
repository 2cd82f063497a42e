# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The plugin manager: built-ins and third parties come through the same hooks."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, Generic, TypeVar, cast

import pluggy

from lowrank_hooks import (
    API_VERSION,
    PROJECT,
    CompressionAlgorithmRecord,
    CostModelRecord,
    DecomposerRecord,
    LayerAdapterRecord,
    RankPolicyRecord,
    StepEvent,
    specs,
)
from lowrank_plugin.errors import ConfigurationError, PluginError
from lowrank_plugin.support.messages import suggestion

STRICT_VARIABLE = "LOWRANK_STRICT_PLUGINS"
DISABLE_VARIABLE = "LOWRANK_DISABLE_PLUGINS"
ONLY_VARIABLE = "LOWRANK_ONLY_PLUGINS"
TRACE_VARIABLE = "LOWRANK_TRACE_PLUGINS"
OWN_DISTRIBUTION = "lowrank-plugin"

AnyRecord = DecomposerRecord | LayerAdapterRecord | CostModelRecord | RankPolicyRecord | CompressionAlgorithmRecord
R = TypeVar("R", bound=AnyRecord)


@dataclass(frozen=True)
class Kind(Generic[R]):
    """A kind of record that plugins yield.

    :param name: what messages call it.
    :param hook: the hook that yields it.
    :param record: its class.
    """

    name: str
    hook: str
    record: type[R]


DECOMPOSERS = Kind("decomposer", "lowrank_decomposers", DecomposerRecord)
LAYER_ADAPTERS = Kind("layer adapter", "lowrank_layer_adapters", LayerAdapterRecord)
COST_MODELS = Kind("cost model", "lowrank_cost_models", CostModelRecord)
RANK_POLICIES = Kind("rank policy", "lowrank_rank_policies", RankPolicyRecord)
COMPRESSION_ALGORITHMS = Kind("compression algorithm", "lowrank_compression_algorithms", CompressionAlgorithmRecord)
KINDS: tuple[Kind[Any], ...] = (DECOMPOSERS, LAYER_ADAPTERS, COST_MODELS, RANK_POLICIES, COMPRESSION_ALGORITHMS)


@dataclass(frozen=True)
class Registered(Generic[R]):
    """A record and where it came from.

    :param record: what the plugin yielded.
    :param distribution: the installed distribution, or the plugin's name if it was registered by hand.
    :param version: the version of that distribution; empty if unknown.
    """

    record: R
    distribution: str
    version: str = ""


class Manager(pluggy.PluginManager):
    """Loads entry points one by one: a broken one is warned about by name and never stops the others.

    :param strict: raise instead of warning.
    """

    def __init__(self, strict: bool = False) -> None:
        super().__init__(PROJECT)
        self._found: dict[str, dict[str, Registered[Any]]] = {}
        self.strict = strict
        self.failures: list[str] = []
        self.add_hookspecs(specs)

    def load_entry_points(self, entry_points: Iterable[metadata.EntryPoint]) -> None:
        """Load and register plugins, the built-ins first.

        :param entry_points: entry points of the group ``lowrank``.
        :raises PluginError: in strict mode, where one cannot be loaded.
        """
        for entry_point in sorted(entry_points, key=lambda each: (_distribution(each) != OWN_DISTRIBUTION, each.name)):
            self._load(entry_point)

    def _load(self, entry_point: metadata.EntryPoint) -> None:
        distribution = _distribution(entry_point)
        where, name = f"{entry_point.name!r} of {distribution}", f"{distribution}:{entry_point.name}"
        try:
            self.register(entry_point.load(), name=name)
            self.check_pending()
        except Exception as error:  # noqa: BLE001 - whatever a third party's import raises is reported, not ours to name
            self.fail(f"The lowrank plugin {where} could not be loaded: {type(error).__name__}: {error}", error)
            if self.has_plugin(name):
                self.unregister(name=name)

    def register(self, plugin: Any, name: str | None = None) -> str | None:
        """As pluggy's; what plugins offer is asked for anew afterwards."""
        self._found.clear()
        return super().register(plugin, name)

    def unregister(self, plugin: Any = None, name: str | None = None) -> Any:
        """As pluggy's; what plugins offer is asked for anew afterwards."""
        self._found.clear()
        return super().unregister(plugin, name)

    def fail(self, message: str, cause: Exception | None = None) -> None:
        """Note that something third parties brought along is broken; warn, and raise in strict mode.

        :param message: what the user is told; names the distribution.
        :param cause: what was raised there.
        :raises PluginError: in strict mode.
        """
        if message not in self.failures:
            self.failures.append(message)
        if self.strict:
            raise PluginError(message) from cause
        warnings.warn(message, RuntimeWarning, stacklevel=2)

    def registered(self, kind: Kind[R]) -> dict[str, Registered[R]]:
        """All records of one kind by the name users type. Each plugin is asked once.

        >>> sorted(manager().registered(COST_MODELS))
        ['latency', 'macs', 'parameters']

        :param kind: such as ``DECOMPOSERS``.
        :raises PluginError: where two plugins yield one name; names both distributions.
        """
        if kind.name not in self._found:
            self._found[kind.name] = self._collected(kind)
        return cast(dict[str, Registered[R]], self._found[kind.name])

    def _collected(self, kind: Kind[R]) -> dict[str, Registered[R]]:
        found: dict[str, Registered[R]] = {}
        for implementation in getattr(self.hook, kind.hook).get_hookimpls():
            distribution, version = self._origin(implementation.plugin_name)
            for record in self._records(implementation, distribution):
                if record.name in found:
                    msg = (
                        f"Two plugins offer a {kind.name} named {record.name!r}: {found[record.name].distribution} and "
                        f"{distribution}. Uninstall one, or name it in the environment variable {DISABLE_VARIABLE}."
                    )
                    raise PluginError(msg)
                found[record.name] = Registered(record, distribution, version)
        return found

    def _records(self, implementation: Any, distribution: str) -> list[Any]:
        try:
            records = list(implementation.function())
        except Exception as error:  # noqa: BLE001 - as in _load
            self.fail(f"{implementation.function.__name__} of {distribution} failed: {error!r}", error)
            return []
        usable = []
        for record in records:
            if record.api_version == API_VERSION:
                usable.append(record)
            else:
                self.fail(
                    f"{record.name!r} of {distribution} was made for version {record.api_version} of the plugin "
                    f"interface; this is version {API_VERSION}. Install a release of it that fits."
                )
        return usable

    def _origin(self, plugin_name: str) -> tuple[str, str]:
        distribution = plugin_name.partition(":")[0]
        try:
            return distribution, metadata.version(distribution)
        except metadata.PackageNotFoundError:
            return distribution, ""

    def find(self, kind: Kind[R], name: str) -> R:
        """The record of one name.

        >>> manager().find(DECOMPOSERS, "svd").name
        'svd'

        :param kind: such as ``DECOMPOSERS``.
        :param name: what the user typed.
        :raises ConfigurationError: listing the choices where there is none.
        """
        choices = self.registered(kind)
        if name not in choices:
            failed = f" Plugins that failed to load: {'; '.join(self.failures)}" if self.failures else ""
            msg = (
                f"Unknown {kind.name} {name!r}. {suggestion(name, choices)}Choose one of: {', '.join(choices)}.{failed}"
            )
            raise ConfigurationError(msg)
        return choices[name].record

    def observe(self, event: StepEvent) -> None:
        """Tell all observers of something that was just done.

        :param event: what it was.
        """
        self.hook.lowrank_step(event=event)


@cache
def manager() -> Manager:
    """The manager with every installed plugin, built when first needed.

    The environment variables ``LOWRANK_DISABLE_PLUGINS`` and ``LOWRANK_ONLY_PLUGINS`` (comma-separated names of
    distributions) leave third parties out, ``LOWRANK_STRICT_PLUGINS=1`` turns warnings about broken ones into errors,
    and ``LOWRANK_TRACE_PLUGINS=1`` prints every hook call.
    """
    made = Manager(strict=os.environ.get(STRICT_VARIABLE, "") not in ("", "0"))
    if os.environ.get(TRACE_VARIABLE, "") not in ("", "0"):
        made.trace.root.setwriter(lambda text: os.write(2, text.encode()))
        made.enable_tracing()
    made.load_entry_points(each for each in metadata.entry_points(group=PROJECT) if _allowed(_distribution(each)))
    return made


def _allowed(distribution: str) -> bool:
    if distribution == OWN_DISTRIBUTION:
        return True
    disabled, only = (_listed(variable) for variable in (DISABLE_VARIABLE, ONLY_VARIABLE))
    return distribution not in disabled and (not only or distribution in only)


def _listed(variable: str) -> set[str]:
    return {name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()}


def _distribution(entry_point: metadata.EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else entry_point.value
