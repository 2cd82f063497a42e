# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The guide for authors is followed to the letter, and its reference is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from environment import Environment

from .reference import MARK, README, reference

BLOCK = re.compile(r"(?:`(?P<file>[\w.]+)`:\n\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)


@pytest.mark.slow
def test_following_the_guide_gives_a_working_decomposer(tmp_path):
    environment, folder = Environment(tmp_path), tmp_path / "empty-folder"
    folder.mkdir()
    done = []
    for block in BLOCK.finditer(README.read_text()):
        if block["kind"] == "console":
            done += follow(environment, folder, block["text"])
        else:
            assert block["file"], f"This block has no file name before it:\n{block['text']}"
            (folder / block["file"]).write_text(block["text"])
    assert done == ["pytest", "pip install .", "lowrank plugins", "python compress.py", "pip wheel . --wheel-dir dist"]
    assert [wheel.name for wheel in (folder / "dist").iterdir()] == ["lowrank_input_svd-0.1.0-py3-none-any.whl"]


def follow(environment: Environment, folder: Path, text: str) -> list[str]:
    """Run the commands of a block; what it shows after each must be in the output."""
    commands = []
    for part in text.split("$ ")[1:]:
        command, *shown = part.strip().splitlines()
        done = environment.run("sh", "-c", command, cwd=folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        for line in shown:
            assert line in done.stdout, f"{command} does not print {line!r}:\n{done.stdout}"
        commands.append(command)
    return commands


def test_reference_is_up_to_date():
    _, _, told = README.read_text().partition(MARK)
    assert told.strip() == reference().strip(), "Write it again: python tests/hooks/reference.py"
