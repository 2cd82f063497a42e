# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The reference of hooks/README.md, from signatures and docstrings; run it to write the file again."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import lowrank_hooks
from lowrank_hooks import NORMS, Status, specs

README = Path(__file__).parents[2] / "hooks" / "README.md"
MARK = "<!-- reference -->\n"


def reference() -> str:
    """The text after the mark."""
    parts = ["## Hooks\n"]
    for name, hook in vars(specs).items():
        if name.startswith("lowrank_"):
            parts.append(f"### `{signature(hook)}`\n\n{summary(hook)}\n")
    parts.append("## Types\n\nAll are frozen, imported from `lowrank_hooks`.\n")
    for kind in (getattr(lowrank_hooks, name) for name in sorted(lowrank_hooks.__all__)):
        if dataclasses.is_dataclass(kind):
            parts.append(f"### `{kind.__name__}`\n\n{summary(kind)}\n\n{fields(kind)}\n")
    parts.append("## Protocols\n")
    for protocol in protocols():
        parts.append(f"### `{protocol.__name__}`\n\n{summary(protocol)}\n\n" + "\n".join(members(protocol)) + "\n")
    parts.append("## Norms\n\nThe entries of `NORMS`.\n")
    rows = [f"| `{kind.name}` | {kind.weighted} | {kind.turned} | {kind.summary} |" for kind in NORMS.values()]
    parts.append("\n".join(["| name | weighted | turned | meaning |", "|---|---|---|---|", *rows]) + "\n")
    parts.append("## Status of a fit\n")
    parts.append("\n".join(f"- `Status.{status.name}`: {status.value}" for status in Status) + "\n")
    return "\n".join(parts)


def protocols() -> list[type]:
    """Those that are offered, as they come in their files."""
    offered = [getattr(lowrank_hooks, name) for name in lowrank_hooks.__all__]
    found = [each for each in offered if getattr(each, "_is_protocol", False)]
    return sorted(found, key=lambda each: (each.__module__, inspect.getsourcelines(each)[1]))


def members(protocol: type) -> list[str]:
    """A row for each method and property."""
    rows = []
    for name, member in vars(protocol).items():
        if inspect.isfunction(member) and name[0] != "_":
            rows.append(f"- `{signature(member)}`: {summary(member)}")
        elif isinstance(member, property):
            kind = str(inspect.signature(member.fget).return_annotation).replace("'", "")
            rows.append(f"- `{name}: {kind}`: {summary(member)}")
    return rows


def signature(function: Any) -> str:
    """As it is written, without quotes and ``self``."""
    return function.__name__ + str(inspect.signature(function)).replace("'", "").replace("(self, ", "(")


def summary(thing: Any) -> str:
    """The first paragraph of the docstring, on one line."""
    text = " ".join(inspect.getdoc(thing).split("\n\n")[0].split())
    return escaped(re.sub(r":math:`(.*?)`", r"$\1$", text))


def escaped(text: str) -> str:
    """Stars are multiplications and unpackings, except inside of code."""
    return "".join(part if part.startswith("`") else part.replace("*", r"\*") for part in re.split(r"(`+.*?`+)", text))


def fields(kind: type) -> str:
    """A row for each field or argument, with its default."""
    told = dict(re.findall(r":param (\w+): (.*?)(?=\s*:param|\s*:return|\Z)", inspect.getdoc(kind), re.DOTALL))
    rows = ["| field | default | meaning |", "|---|---|---|"]
    factories = {field.name: field.default_factory for field in dataclasses.fields(kind)}
    for name, parameter in inspect.signature(kind).parameters.items():
        default = "" if parameter.default is parameter.empty else f"`{default_text(parameter.default)}`"
        if factories.get(name, dataclasses.MISSING) is not dataclasses.MISSING:
            default = f"`{factories[name]()}`"
        rows.append(f"| `{name}` | {default} | {escaped(' '.join(told[name].split()))} |")
    return "\n".join(rows)


def default_text(value: Any) -> str:
    """Sets in a fixed order."""
    if isinstance(value, frozenset):
        return "{" + ", ".join(map(repr, sorted(value))) + "}"
    return repr(value)


if __name__ == "__main__":
    before, _, _ = README.read_text().partition(MARK)
    README.write_text(before + MARK + "\n" + reference())
