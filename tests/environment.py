# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A virtual environment of its own, for distributions that are really installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

_COMMANDS = {
    # nothing is fetched: what a distribution needs is there already
    "pip": '-m pip "$@" --quiet --no-deps --no-build-isolation --no-index',
    "pytest": '-m pytest -p no:cacheprovider "$@"',
    "lowrank": """-c 'import sys; from lowrank_plugin.cli import main; sys.exit(main())' "$@" """,
}


@dataclass
class Environment:
    """Sees what is installed where the tests run, and keeps what it installs to itself.

    :param folder: where it is made.
    :param variables: for every command.
    """

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.folder / "env")], check=True)
        [site_packages] = (self.folder / "env").glob("lib/python*/site-packages")
        # addsitedir, unlike a bare path, also follows the .pth files of editable installs
        paths = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
        lines = [f"import site; site.addsitedir({path!r})" for path in sorted(paths)]
        (site_packages / "outer.pth").write_text("\n".join(lines) + "\n")
        for name, command in _COMMANDS.items():
            shim = self.python.parent / name
            shim.write_text(f"#!/bin/sh\nexec {self.python} {command}\n")
            shim.chmod(0o755)

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.folder / "env" / "bin" / "python"

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the environment; its status is not looked at."""
        bin_folder = str(self.python.parent)
        surrounding = {
            **os.environ,
            "PATH": os.pathsep.join([bin_folder, os.environ["PATH"]]),
            "OMP_NUM_THREADS": "1",
            "NNCF_CI": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **self.variables,
            **variables,
        }
        return subprocess.run(
            command, cwd=cwd or self.folder, env=surrounding, capture_output=True, text=True, check=False
        )

    def script(self, code: str, **variables: str) -> str:
        """Run Python code that must succeed; returns what it printed."""
        done = self.run(str(self.python), "-c", textwrap.dedent(code), **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, *sources: Path) -> None:
        """Install distributions with pip, from copies of their folders."""
        copies = [shutil.copytree(source, self.folder / "sources" / source.name) for source in sources]
        done = self.run(str(self.python.parent / "pip"), "install", *(str(copy) for copy in copies))
        assert done.returncode == 0, done.stdout + done.stderr
