# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Safetensors files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_whole(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to a new file beside the old one, and only then give it that one's name.

    :param path: of the file.
    :param tensors: on any device, in any layout; they may share memory.
    :param metadata: written into the file's header.
    :raises OSError: where the file cannot be written; what was there before is still there.
    :raises safetensors.SafetensorError: likewise, where the library meets the failure.
    """
    # copies, because safetensors refuses tensors that share memory, as tied weights do
    stored = {name: each.detach().cpu().contiguous().clone() for name, each in tensors.items()}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(stored, temporary, metadata=dict(metadata))
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_whole(path: Path, key: str, refused: Callable[[str], Exception]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file that :func:`write_whole` wrote.

    :param path: of the file.
    :param key: of the JSON object in the file's header.
    :param refused: makes the error that is raised where the file cannot be read, from the cause.
    :return: the object, empty where the header has no such key, and the tensors, on the CPU.
    """
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads((file.metadata() or {}).get(key, "{}"))
            return notes, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file, not a mapping
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise refused(cause) from error
