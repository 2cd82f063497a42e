# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The form of files, apart from the numbers in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

LATER = ("unit",)
"""Keys that files of version 0.1.0 have not."""


def form(value: Any) -> Any:
    """Keys and types of a JSON value, without keys that came later; of a list, which forms there are.

    >>> form({"rank": [3, 4], "error": 0.5})
    {'rank': ['"int"'], 'error': 'float'}

    :param value: the JSON value.
    """
    if isinstance(value, dict):
        return {key: form(each) for key, each in value.items() if key not in LATER}
    if isinstance(value, list):
        return sorted({json.dumps(form(each), sort_keys=True) for each in value})
    return type(value).__name__


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON values in the metadata of a safetensors file, and its tensors.

    :param path: of the file.
    """
    with safe_open(path, framework="pt") as file:
        metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    return metadata, load_file(path)


def form_of_file(path: Path) -> tuple[Any, Any]:
    """The form of a JSON or safetensors file: of its JSON values, and shapes and dtypes of its tensors.

    :param path: of the file.
    """
    if path.suffix == ".json":
        return form(json.loads(path.read_text())), None
    metadata, tensors = contents(path)
    return form(metadata), {name: (each.shape, each.dtype) for name, each in tensors.items()}
