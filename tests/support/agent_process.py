"""Agents in a process of their own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class Process:
    """An agent's process in a folder of its own."""

    def __init__(self, folder: Path, source: str, toml: str, *arguments: str) -> None:
        self.folder = folder
        (folder / "agent.py").write_text(textwrap.dedent(source))
        (folder / "poolwire.toml").write_text(textwrap.dedent(toml))
        self.child = subprocess.Popen(
            [sys.executable, "agent.py", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def saw(self, name: str) -> bool:
        assert self.child.poll() is None, self.child.communicate()[1]
        return (self.folder / name).exists()

    def end(self) -> tuple[int, str]:
        _, errors = self.child.communicate(timeout=60)
        return self.child.returncode, errors
