"""Which calls may open a connection: a cheap look at each while a file is read, and a second one at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.migration.facts import FileFacts
from app.migration.libraries import CONSTRUCTORS, LIBRARIES, TERMINALS, canonical

# Modules whose methods are called like those looked for, and that never hand on a connection of the libraries.
_ELSEWHERE = frozenset({
    "os", "sys", "queue", "multiprocessing", "threading", "collections", "json", "typing", "flask", "fastapi",
    "starlette", "django", "tkinter", "PyQt5", "PyQt6", "PySide6", "numpy", "pandas", "logging", "argparse",
    "configparser", "dataclasses", "pathlib", "re", "random", "time", "datetime", "signal", "subprocess", "unittest",
    "mock", "pytest", "click", "typer", "rich", "yaml", "pydantic", "torch", "transformers",
})  # fmt: skip


def may_open(terminal: str, callee: Sequence[str]) -> bool:
    """Whether a call of the name ``terminal``, which may stand for ``callee``, is worth remembering."""
    if terminal in TERMINALS:
        return any(_reaches_library(symbol) for symbol in callee)
    # Through an alias the called name says nothing, what it stands for does.
    for symbol in callee:
        last = symbol.rpartition(".")[2]
        if (symbol[0] == ":" and not symbol.endswith("()")) or (last in TERMINALS and _reaches_library(symbol)):
            return True
    return False


def _reaches_library(symbol: str) -> bool:
    """Whether a symbol may turn out to be a library's name: it is one, or another file's, or not known."""
    if symbol[0] in ":*.?":
        return True
    head = symbol.partition(".")[0].removesuffix("()")
    return head in LIBRARIES or head not in _ELSEWHERE


def leads_to_library(symbol: str, facts: FileFacts, names: Mapping[str, Sequence[str]]) -> bool:
    """Whether a called symbol may be a library's, now that everything in its file is bound.

    Args:
        symbol: what is called.
        facts: the file's.
        names: what the names of the file's top level stand for.
    """
    owner, _, name = symbol.rpartition(".")
    if symbol[0] != ":":
        known = symbol.partition(".")[0] in LIBRARIES
        return canonical(symbol) in CONSTRUCTORS if known else True
    if not owner:
        if name[1:] in facts.classes:
            return True  # it may derive from a library's class
        return any(_ends_like_a_constructor(value) for value in names.get(name[1:], ()))
    class_facts = facts.classes.get(owner[1:].removesuffix("()"))
    if class_facts is None:
        return name in TERMINALS
    if name in class_facts.methods:
        return False
    if name in TERMINALS and class_facts.bases:
        return True  # a base, perhaps a library's class, may have it
    return any(_ends_like_a_constructor(value) for value in class_facts.attributes.get(name, ()))


def _ends_like_a_constructor(symbol: str) -> bool:
    return symbol.rpartition(".")[2].lstrip("*") in TERMINALS
