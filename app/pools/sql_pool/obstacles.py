"""Obstacles: what keeps SQLite from a file. SQLite itself has one sentence for all of them."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from app.pools.errors import MORE_DESCRIPTORS
from app.pools.sql_pool.config import DatabaseConfig

_FILES = 4
"""The database's, its log's, the log's index, and their folder's."""
_AS_OPENED = os.access in os.supports_effective_ids
"""Whether rights are those of the effective user, as for a file that is opened."""
_OBSTRUCTED = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)


def name_obstacle(config: DatabaseConfig, error: sqlite3.OperationalError, *, advise: bool = True) -> None:
    """Raise an error that names what keeps SQLite from a file, if that is the matter and is seen.

    Args:
        config: the database.
        error: what SQLite says.
        advise: whether to say what to do about a shortage of file descriptors.
    """
    code = getattr(error, "sqlite_errorcode", 0)
    named_already = isinstance(error.__cause__, OSError)
    if config.in_memory or code & 0xFF not in _OBSTRUCTED or named_already:
        return
    obstacle, advice = _obstacle(config), ""
    if obstacle is None:
        obstacle, advice = _shortage(), f". {MORE_DESCRIPTORS}" if advise else ""
    if obstacle is not None:
        named = sqlite3.OperationalError(f"{error}: {obstacle.strerror}{advice}")
        named.sqlite_errorcode, named.sqlite_errorname = code, error.sqlite_errorname
        raise named from obstacle


def _obstacle(config: DatabaseConfig) -> OSError | None:
    """Return what is wrong with a file, its folder or their rights.

    The file itself is not opened for it: to close it would drop the locks that SQLite has on it.
    """
    path = Path(config.database)
    try:
        if not path.parent.is_dir():
            return OSError(errno.ENOENT, f"there is no folder {path.parent}; make it, or correct the path")
        if path.is_dir():
            return OSError(errno.EISDIR, "it is a folder; name a file in it")
        if path.exists():
            return _denial(config, path)
        if config.readonly:
            return OSError(errno.ENOENT, "there is no such file, and readonly=True makes none; correct the path")
        return None if _may(path.parent, os.W_OK | os.X_OK) else _denied(f"make files in {path.parent}")
    except PermissionError as denied:
        return _denied(f"look into the folders above {denied.filename}")
    except OSError as error:
        return error


def _denial(config: DatabaseConfig, path: Path) -> OSError | None:
    """Return which right to an existing file is missing."""
    if not _may(path, os.R_OK):
        return _denied(f"read {path}")
    if config.readonly:
        return None
    remedy = ", or use readonly=True"
    if not _may(path, os.W_OK):
        return _denied(f"write {path}", remedy)
    # SQLite makes its log, or its journal, beside the file.
    return None if _may(path.parent, os.W_OK | os.X_OK) else _denied(f"make files in {path.parent}", remedy)


def _may(path: Path, rights: int) -> bool:
    return os.access(path, rights, effective_ids=_AS_OPENED)


def _denied(act: str, remedy: str = "") -> OSError:
    text = f"{os.strerror(errno.EACCES)}: the user of this process may not {act}; give it that right{remedy}"
    return PermissionError(errno.EACCES, text)


def _shortage() -> OSError | None:
    """Return what keeps as many files from being opened as SQLite needs for a database."""
    opened: list[int] = []
    try:
        for _ in range(_FILES):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as shortage:
        return shortage
    finally:
        for each in opened:
            os.close(each)
    return None
