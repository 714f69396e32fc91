"""The labelled corpus of the migration: its files, and what a person says is in each line of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parents[1] / "migration" / "corpus"
_LABEL = re.compile(r"[ \t]*#@ (.*)$", re.MULTILINE)
_SCOPES = {"module", "init", "loop", "method"}


@dataclass(frozen=True, order=True)
class Label:
    """One site as a person sees it."""

    file: str
    line: int
    kind: str
    socket_type: str
    scope: str
    hot: bool


def names() -> list[str]:
    """Return the names of the corpus's files."""
    return sorted(file.name.removesuffix(".py.txt") for file in CORPUS.glob("*.py.txt"))


def source(name: str) -> str:
    """Return a file's source, without its labels."""
    return _LABEL.sub("", (CORPUS / f"{name}.py.txt").read_text("utf-8"))


def labels(name: str) -> list[Label]:
    """Return what a person found in a file."""
    found = []
    for number, line in enumerate((CORPUS / f"{name}.py.txt").read_text("utf-8").split("\n"), 1):
        match = _LABEL.search(line)
        for text in match[1].split(";") if match else ():
            kind, *rest = text.split()
            hot = "hot" in rest
            scope = next(word for word in rest if word in _SCOPES)
            role = next((word for word in rest if word not in _SCOPES | {"hot"}), "")
            found.append(Label(f"{name}.py", number, kind, role, scope, hot))
    return found


def lay_out(folder: Path) -> Path:
    """Write the corpus without its labels as a package in ``folder`` and return its path."""
    package = folder / "corpus"
    package.mkdir()
    for name in names():
        (package / f"{name}.py").write_text(source(name), "utf-8")
    return package
