"""Walking a folder: which files are worth reading, and why the others are not."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

DEFAULT_SIZE_LIMIT = 2 * 1024 * 1024
"""Bytes above which a file is left out: such files are data, not something to read."""

INDEX_FOLDER = ".poolwire"
"""Where an indexed folder keeps its index; never walked."""

_TOOL_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "venv", "env", "dist-packages"})


class Reason(StrEnum):
    """Why a file is not in the index."""

    BINARY = "binary"
    ENCODING = "badly encoded"
    HUGE = "huge"
    UNREADABLE = "unreadable"
    VANISHED = "vanished"
    SPECIAL = "not a regular file"
    LINK_LOOP = "link to a folder already walked"
    DUPLICATE_LINK = "link to a file of this folder"
    BROKEN_LINK = "broken link"
    NAME = "name is not UTF-8"
    HIDDEN = "hidden"
    TOOL_FOLDER = "folder of a tool"


class SkipFile(Exception):
    """A file cannot be indexed.

    Attributes:
        reason: the kind of obstacle.
        detail: what was found, for a person; may be empty.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}" if detail else str(reason))


@dataclass(frozen=True, slots=True)
class Found:
    """A file to read.

    Attributes:
        path: relative to the folder, with ``/``.
        size: in bytes, when the folder was walked.
        modified: nanoseconds since the epoch, when the folder was walked.
    """

    path: str
    size: int
    modified: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file, or a folder when ``path`` ends in ``/``, that is left out."""

    path: str
    reason: Reason
    detail: str = ""


def walk(
    folder: Path, *, size_limit: int = DEFAULT_SIZE_LIMIT, only: Collection[str] = ()
) -> Iterator[Found | Skipped]:
    """Yield every file below ``folder``, in the order of their names, as found or as skipped.

    Links are followed out of the folder but never twice to the same place. Hidden files stay out, because
    ``.env`` and its kind hold secrets; so do the folders that tools fill. What disappears or cannot be
    listed during the walk is reported, never raised.

    Args:
        folder: an existing folder.
        size_limit: in bytes.
        only: names of entries of ``folder`` outside of which nothing is looked at; all of them if empty.
    """
    root = os.path.realpath(folder)
    walked = {_identity(os.stat(root))}
    pending: list[tuple[str, str]] = [(root, "")]
    while pending:
        location, prefix = pending.pop()
        try:
            with os.scandir(location) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if prefix:
                yield Skipped(printable(prefix), *_obstacle(error))
                continue
            raise
        deeper: list[tuple[str, str]] = []
        if only and not prefix:
            entries = [entry for entry in entries if entry.name in only]
        for entry in entries:
            path = prefix + entry.name
            try:
                outcome = _judge(entry, path, root, walked, size_limit)
            except OSError as error:
                outcome = Skipped(printable(path), *_obstacle(error, linked=entry.is_symlink()))
            if outcome is None:
                deeper.append((entry.path, path + "/"))
            else:
                yield outcome
        pending.extend(reversed(deeper))


def _judge(
    entry: os.DirEntry[str], path: str, root: str, walked: set[tuple[int, int]], size_limit: int
) -> Found | Skipped | None:
    """Return what is to be said about an entry; ``None`` for a folder to walk into."""
    if not _is_utf8(entry.name):
        return Skipped(printable(path), Reason.NAME)
    status = entry.stat()
    if stat.S_ISDIR(status.st_mode):
        folder_path = path + "/"
        if entry.name.startswith("."):
            return Skipped(folder_path, Reason.HIDDEN)
        if entry.name in _TOOL_FOLDERS or os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):
            return Skipped(folder_path, Reason.TOOL_FOLDER)
        identity = _identity(status)
        if identity in walked:
            return Skipped(folder_path, Reason.LINK_LOOP)
        walked.add(identity)
        return None
    if entry.name.startswith("."):
        return Skipped(path, Reason.HIDDEN)
    if not stat.S_ISREG(status.st_mode):
        return Skipped(path, Reason.SPECIAL)
    if status.st_size > size_limit:
        return Skipped(path, Reason.HUGE, f"{status.st_size:,} bytes, the limit is {size_limit:,}")
    if entry.is_symlink() and os.path.realpath(entry.path).startswith(root + os.sep):
        return Skipped(path, Reason.DUPLICATE_LINK)
    return Found(path, status.st_size, status.st_mtime_ns)


def _obstacle(error: OSError, *, linked: bool = False) -> tuple[Reason, str]:
    if isinstance(error, FileNotFoundError):
        return (Reason.BROKEN_LINK if linked else Reason.VANISHED), ""
    return Reason.UNREADABLE, error.strerror or str(error)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(path: str) -> str:
    """Return ``path`` with the bytes that are not UTF-8 written as escapes, so that it can be stored and shown."""
    return os.fsencode(path).decode(errors="backslashreplace")
