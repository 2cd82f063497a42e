# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowrank_plugin.support.validation import Json


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Write a new file beside an old one, which takes that one's name at the end.

    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name) / "notes.txt"
    >>> with replaced(path) as new:
    ...     _ = new.write_text("whole")
    >>> path.read_text(), [each.name for each in path.parent.iterdir()]
    ('whole', ['notes.txt'])
    >>> folder.cleanup()

    :param path: of the file.
    :return: the path to write to. Where writing raises, it is removed, and what was at ``path`` before is still there.
    :raises OSError: where no file can be made or renamed there.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_whole(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors in the safetensors format, in the place of an old file if there is one.

    :param path: of the file.
    :param tensors: on any device, in any layout; they may share memory.
    :param metadata: written into the file's header.
    :raises OSError: where the file cannot be written; what was there before is still there.
    :raises safetensors.SafetensorError: likewise, where the library meets the failure.
    """
    # copies, because safetensors refuses tensors that share memory, as tied weights do
    stored = {name: each.detach().cpu().contiguous().clone() for name, each in tensors.items()}
    with replaced(path) as new:
        save_file(stored, new, metadata=dict(metadata))


def read_whole(path: Path, key: str, refused: Callable[[str], Exception]) -> tuple[Json, dict[str, Tensor]]:
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
