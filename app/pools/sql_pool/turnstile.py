"""A turnstile: which process may write to a SQLite database now."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from contextlib import suppress
from typing import Protocol

_PAUSE = 0.0005
_GATE, _RIGHT = 0, 1
_SUFFIX = "-writer"
"""What the lock file's name has more than the database's."""


class Wanted(Protocol):
    """What a process waits on behalf of."""

    taken_back: bool
    """Whether nobody wants it any more."""


class Turnstile:
    """File locks between processes: a gate that one process at a time waits in, and the right itself.

    A process that has just written must pass the gate again, in which the longest waiting one stands: so it
    cannot take the right over and over while the others poll. The locks are POSIX record locks on two bytes
    of one file; they belong to the process, which is why ``writer_lock`` makes one lock for a path.

    Args:
        path: the database's file, or ``None`` for a database that only this process sees.
    """

    def __init__(self, path: str | None) -> None:
        # A file of its own: closing a descriptor of the database itself would drop SQLite's own locks on it.
        self._database = path
        self._path = None if path is None else path + _SUFFIX
        self._file = -1

    def enter(self, deadline: float, wish: Wanted) -> bool:
        """Wait for the right until ``deadline`` (monotonic seconds), while it is wished; return whether it was had.

        Raises:
            OSError: the file system has no locks.
        """
        if self._file < 0 and not self._opened():
            return True
        if not self._lock(_GATE, deadline, wish):
            return False
        try:
            return self._lock(_RIGHT, deadline, wish)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _GATE)

    def leave(self) -> None:
        """Give the right to the next process."""
        if self._file >= 0:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _RIGHT)

    def close(self) -> None:
        """Close the file, which unlocks it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    __del__ = close  # of a pool that was dropped without a stop

    def _opened(self) -> bool:
        """Say whether there is a file to lock, and it could be opened.

        If it could not, for want of a right or of a descriptor, SQLite can hardly write either, and whoever has it try
        is told why. If it can, its own locks keep the others out; and the next one who comes here tries again.
        """
        if self._database is not None and self._path is not None:
            with suppress(OSError):
                self._file = _open_as(os.stat(self._database), self._path)
        return self._file >= 0

    def _lock(self, byte: int, deadline: float, wish: Wanted) -> bool:
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except (BlockingIOError, PermissionError):  # POSIX allows either
                if time.monotonic() >= deadline or wish.taken_back:
                    return False
                time.sleep(_PAUSE)
            except OSError as error:
                error.filename = self._path
                raise
            else:
                return True


def _open_as(model: os.stat_result, path: str) -> int:
    """Open a file, made if there is none, that whoever may write to the model may open: as SQLite does with its log.

    It has the model's mode and, if this is root's process, its owner.

    Returns:
        the descriptor.
    """
    mode = model.st_mode & 0o777
    # Not what a link leads to: its mode and owner would be changed.
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    made = os.fstat(file)
    if made.st_size or made.st_nlink != 1:
        return file  # not a file of ours
    if os.geteuid() == 0 and (made.st_uid, made.st_gid) != (model.st_uid, model.st_gid):
        with suppress(OSError):  # a container may keep root from it
            os.fchown(file, model.st_uid, model.st_gid)
    if stat.S_IMODE(made.st_mode) != mode:  # the umask took some of it
        with suppress(OSError):  # another user's, or a file system without modes
            os.fchmod(file, mode)
    return file
