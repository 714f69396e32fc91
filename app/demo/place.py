"""Where things are: the folder to index unless one is named, and the file of its index."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path

from app.demo.folder import INDEX_FOLDER
from app.pools.core.ignored import keep_out_of_git

_INDEX = "index.sqlite"
_SQLITE = b"SQLite format 3\0"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def default_folder() -> tuple[Path, tuple[str, ...]]:
    """Return the folder of this project, and which of its entries are its documentation and source.

    In an installation that is the package, with no entries named because all of them are source.
    """
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent
    if (checkout / "docs").is_dir() and (checkout / "pyproject.toml").is_file():
        return checkout, ("README.md", "docs", package.name)
    return package, ()


def index_file(folder: Path) -> Path:
    """Return the file of the folder's index, whose own folder exists.

    It is in ``.poolwire`` of the folder or, where that cannot be written or is an installed package, in the
    user's cache. A file there that is no database is removed: an index can always be rebuilt.

    Args:
        folder: an existing folder.

    Raises:
        OSError: neither place can be written.
    """
    folder = folder.resolve()
    own = folder / INDEX_FOLDER
    if "site-packages" in folder.parts or not _prepare(own):
        name = hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()
        own = _cache() / name
        try:
            own.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"there is no place for the index: {own} cannot be made ({error.strerror}); "
                f"name a folder of yours in XDG_CACHE_HOME"
            ) from error
    index = own / _INDEX
    _remove_what_is_no_database(index)
    return index


def is_damage(error: BaseException) -> bool:
    """Whether ``error`` says that the index is damaged, as a disk that was full or a half copied file leaves it."""
    cause: BaseException | None = error
    while cause is not None:
        # The lower byte of a code is what its extended forms have in common.
        if isinstance(cause, sqlite3.DatabaseError) and getattr(cause, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
            return True
        cause = cause.__cause__
    return False


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "poolwire"


def _prepare(own: Path) -> bool:
    """Make the folder, and keep it out of the user's version control; return whether it can be written."""
    try:
        own.mkdir(exist_ok=True)
        keep_out_of_git(own)
    except OSError:
        return False
    return os.access(own, os.W_OK | os.X_OK)


def _remove_what_is_no_database(index: Path) -> None:
    try:
        with index.open("rb") as file:
            start = file.read(len(_SQLITE))
    except FileNotFoundError:
        return
    if start not in (b"", _SQLITE):
        for suffix in ("", "-wal", "-shm"):
            index.with_name(index.name + suffix).unlink(missing_ok=True)
