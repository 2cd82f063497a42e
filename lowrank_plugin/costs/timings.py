# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Times measured once, kept on disk for the next plan."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

from lowrank_plugin.support.files import replaced

logger = logging.getLogger(__name__)

FORMAT = 1


def cache_folder() -> Path:
    """Where this package keeps files between runs: ``lowrank`` in ``$XDG_CACHE_HOME`` or in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowrank"


class Timings:
    """Milliseconds by key, for one runtime on one machine; a JSON file each, replaced atomically.

    A file that cannot be read is warned about and written anew; a folder that cannot be written to is warned about, and
    the times last as long as the object.

    :param facts: what the times depend on besides the key: runtime, version, processor, threads, precision.
    """

    def __init__(self, facts: Mapping[str, str]) -> None:
        self._facts = dict(facts)
        name = hashlib.sha256(json.dumps(self._facts, sort_keys=True).encode()).hexdigest()[:16]
        self.path = cache_folder() / "latency" / f"{name}.json"
        self._times = self._read()

    def __contains__(self, key: str) -> bool:
        return key in self._times

    def __getitem__(self, key: str) -> float:
        return self._times[key]

    def update(self, times: Mapping[str, float]) -> None:
        """Add times, to the file too.

        :param times: milliseconds by key.
        """
        # what another process has written meanwhile is kept
        self._times = {**self._read(), **self._times, **times}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = {"format": FORMAT, "facts": self._facts, "milliseconds": self._times}
            with replaced(self.path) as new:
                new.write_text(json.dumps(kept, indent=1))
        except OSError as error:
            logger.warning("Measured times cannot be kept in %s: %s", self.path.parent, error)

    def _read(self) -> dict[str, float]:
        try:
            found = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.warning("The measured times in %s cannot be read and are measured again: %s", self.path, error)
            return {}
        if not _valid(found):
            logger.warning("The measured times in %s are malformed and are measured again.", self.path)
            return {}
        return found["milliseconds"]


def _valid(found: object) -> bool:
    times = found.get("milliseconds") if isinstance(found, dict) and found.get("format") == FORMAT else None
    return isinstance(times, dict) and all(
        isinstance(time, float | int) and math.isfinite(time) and time > 0 for time in times.values()
    )
