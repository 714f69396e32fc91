"""The folder of an embedded PostgreSQL: nobody else's, and removed some time if it is temporary."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from app.pools.sql_pool.embedded_programs import EmbeddedPostgresError, open_to_all

_TEMPORARY = "poolwire-postgres-"
_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Bytes of a unix socket's path."""
_ORPHANS_END = 10.0
"""Seconds within which the programs of a process that was killed end: initdb goes on until its next step."""
_POLL = 0.005
_FIRST_KEPT, _KEPT = {"password"}, {"password", "port"}


def make_temporary() -> tuple[Path, int]:
    """Make a temporary folder, and remove those of processes that had no time to.

    Returns:
        the folder, and a descriptor that marks it as somebody's until it is closed, by the kernel if need be.
    """
    remove_orphans()
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY)).absolute()
    mark = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(mark, fcntl.LOCK_EX)
    return folder, mark


def remove_orphans() -> None:
    """Remove temporary folders whose processes have ended without removing them, by a signal above all."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        with suppress(OSError):  # somebody's, or not ours to remove
            mark = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if any(folder.iterdir()):  # an empty one may be made at this moment, and not be marked yet
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(mark)


def remove(folder: Path) -> None:
    """Remove a folder into which the orphans of an ended process may still write for some seconds.

    Raises:
        EmbeddedPostgresError: they do not end, or it may not be removed.
    """
    deadline = time.monotonic() + _ORPHANS_END
    shutil.rmtree(folder, ignore_errors=True)
    while folder.exists():
        if time.monotonic() >= deadline:
            raise EmbeddedPostgresError(f"{folder} cannot be removed; see who still uses it, and whose it is")
        time.sleep(_POLL)
        shutil.rmtree(folder, ignore_errors=True)


def prepare(folder: Path, user: int | None) -> None:
    """Make a folder, or take an empty one or that of an earlier run, and have only the server enter it.

    Args:
        folder: where.
        user: who the server runs as, if it is not the one who runs this process.

    Raises:
        EmbeddedPostgresError: it has other files, or the server could not use it.
    """
    if len(os.fsencode(folder / ".s.PGSQL.65535")) > _LONGEST_SOCKET:
        raise EmbeddedPostgresError(f"{folder} is too long a path for PostgreSQL's unix socket; choose a shorter one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _is_own(folder):
            raise EmbeddedPostgresError(
                f"{folder} has other files than PostgreSQL's, and would be made its own; name an empty folder, or "
                "one that does not exist yet"
            )
        if user is not None:
            _hand_over(folder, user)
        folder.chmod(0o700 if user is None else 0o711)
    except OSError as error:
        raise EmbeddedPostgresError(f"{folder} cannot be made a folder of PostgreSQL: {error}") from error


def _is_own(folder: Path) -> bool:
    names = {each.name for each in folder.iterdir()}
    return names >= _KEPT or names <= _FIRST_KEPT  # the second: empty, or made by a run that did not come further


def _hand_over(folder: Path, user: int) -> None:
    if not open_to_all(folder.parent):
        raise EmbeddedPostgresError(
            f"PostgreSQL does not run as root, and the unprivileged user that it runs as cannot enter {folder}; "
            "choose a folder outside private ones, such as /tmp/postgres"
        )
    os.chown(folder, user, user)
