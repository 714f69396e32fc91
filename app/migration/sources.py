"""Files: finding them, decoding them, and reading the facts of each. Nothing is ever written."""

from __future__ import annotations

import ast
import codecs
import io
import os
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from app.migration.facts import FileFacts, Ignore
from app.migration.libraries import SOURCE_MENTIONS
from app.migration.reading import Reader
from app.migration.tolerant import parse

_NOT_SOURCES = frozenset({
    ".eggs", ".git", ".hg", ".mypy_cache", ".nox", ".pytest_cache", ".ruff_cache", ".svn", ".tox", ".venv",
    "__pycache__", "__pypackages__", "node_modules", "site-packages", "venv",
})  # fmt: skip
_DEEP = 60_000
_IGNORE = re.compile(r"#\s*poolwire:\s*ignore(?:\[([^\]]*)\])?[ \t]*(.*)$")


@dataclass(frozen=True, slots=True)
class Found:
    """A file to read, or, with a ``reason``, one that cannot be."""

    path: str
    reason: str = ""


def find(paths: Sequence[str], exclude: Sequence[str] = ()) -> Iterator[Found]:
    """Yield the Python files under ``paths``, each once, in order.

    Args:
        paths: files and folders. Links are followed; a loop of links ends where it began.
        exclude: patterns (``fnmatch``) of paths or of single names to leave out.
    """
    seen: set[tuple[int, int]] = set()
    for path in paths:
        path = os.path.normpath(path)
        if os.path.isdir(path):
            yield from _walk(path, exclude, seen)
        else:
            yield from _file(path, seen)


def _walk(folder: str, exclude: Sequence[str], seen: set[tuple[int, int]]) -> Iterator[Found]:
    try:
        status = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Found(_shown(folder), f"the folder cannot be read: {error.strerror}")
        return
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
        path = os.path.join(folder, entry.name) if folder != "." else entry.name
        if _excluded(path, exclude):
            continue
        try:
            is_folder = entry.is_dir()
        except OSError as error:
            yield Found(_shown(path), f"the link cannot be followed: {error.strerror}")
            continue
        if is_folder:
            if entry.name not in _NOT_SOURCES and not os.path.exists(os.path.join(path, "pyvenv.cfg")):
                yield from _walk(path, exclude, seen)
        elif entry.name.endswith((".py", ".pyw")):
            yield from _file(path, seen)


def _file(path: str, seen: set[tuple[int, int]]) -> Iterator[Found]:
    try:
        status = os.stat(path)
    except OSError as error:
        yield Found(_shown(path), f"the file cannot be opened: {error.strerror}")
        return
    if (status.st_dev, status.st_ino) not in seen:
        seen.add((status.st_dev, status.st_ino))
        yield Found(_shown(path))


def _shown(path: str) -> str:
    return path.replace(os.sep, "/")


def _excluded(path: str, patterns: Sequence[str]) -> bool:
    shown = _shown(path)
    name = shown.rpartition("/")[2]
    return any(fnmatch(shown, pattern) or fnmatch(name, pattern) for pattern in patterns)


def decode(data: bytes) -> tuple[str, str]:
    """Return the text of a source file, and what is wrong with its encoding (``""`` if nothing is)."""
    problem = ""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text, problem = data.decode("utf-16", "replace"), "encoded as UTF-16, which Python does not read"
    elif data[1:40:2].count(0) > 12:
        text, problem = data.decode("utf-16-le", "replace"), "encoded as UTF-16, which Python does not read"
    else:
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            text = data.decode(encoding)
        except (SyntaxError, UnicodeDecodeError, LookupError) as error:
            text, problem = data.decode("latin-1"), f"wrongly encoded: {error}"
    if "\0" in text:
        text, problem = text.replace("\0", " "), problem or "it contains null bytes"
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"), problem


def facts_of(data: bytes) -> FileFacts:
    """Read the facts of a file's content."""
    text, problem = decode(data)
    tree, mistake, line = parse(text)
    mentions = SOURCE_MENTIONS.search(data) is not None or b"\0" in data
    facts = _read(tree, text) if mentions else FileFacts()
    facts.lines = text.count("\n") + (not text.endswith("\n") and text != "")
    facts.problem = problem or mistake
    facts.problem_line = line
    if "poolwire:" in text:
        facts.ignores = list(_ignores(text))
    return facts


def _read(tree: ast.Module, text: str) -> FileFacts:
    limit = sys.getrecursionlimit()
    try:
        return Reader(tree, text).facts
    except RecursionError:  # a sum of thousands of terms is nested as deeply; these calls take no C stack
        sys.setrecursionlimit(max(limit, _DEEP))
        try:
            return Reader(tree, text).facts
        finally:
            sys.setrecursionlimit(limit)


def _ignores(text: str) -> Iterator[Ignore]:
    for number, comment in _comments(text):
        match = _IGNORE.match(comment)
        if match:
            codes = [code.strip().upper() for code in (match[1] or "").split(",") if code.strip()]
            yield Ignore(number, codes, match[2].strip())


def _comments(text: str) -> Iterator[tuple[int, str]]:
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):  # it does not parse: take what looks like a comment
        for number, line in enumerate(text.split("\n"), 1):
            position = line.find("#")
            if position >= 0:
                yield number, line[position:]
        return
    for token in tokens:
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def encoding_of(data: bytes) -> str:
    """Return the encoding that a source file declares, without a byte order mark's."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return "utf-8" if encoding == "utf-8-sig" else encoding
