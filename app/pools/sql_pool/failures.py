"""What a driver's error says, and what it must not keep."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import traceback
from collections.abc import Iterator

from app.pools.errors import MORE_DESCRIPTORS, MORE_THREADS, DatabaseUnreachable

# asyncpg's words for a server that has ended the connection between two calls.
_ENDED_BETWEEN_CALLS = re.compile(r"cannot switch to state \d+; another operation \(\d+\) is in progress")

# The server's, a role's or a database's own cap; libpq has no SQLSTATE for it (53300).
_SERVER_IS_FULL = re.compile(r"too many (?:clients|connections)|remaining connection slots", re.IGNORECASE)


def reason(error: BaseException) -> str:
    """Return the first line of what a driver says, without the program's own wrapping."""
    text = str(getattr(error, "orig", None) or error).strip()
    if _ENDED_BETWEEN_CALLS.match(text):
        return "the server closed the connection"
    return text.splitlines()[0][:300] if text else type(error).__name__


def lacks_descriptors(error: BaseException) -> bool:
    """Say whether a failure comes of a shortage of file descriptors, which passes, whatever else it looks like."""
    shortage = (errno.EMFILE, errno.ENFILE)
    return any(
        getattr(each, "errno", None) in shortage or any(os.strerror(number) in str(each) for number in shortage)
        for each in _with_origins(error)
    )


def lacks_threads(error: BaseException) -> bool:
    """Say whether a failure comes of a shortage of threads, which passes: aiosqlite and name resolution need one."""
    return any(isinstance(each, RuntimeError) and "new thread" in str(each) for each in _with_origins(error))


def is_sqlite(error: BaseException) -> bool:
    """Say whether a failure is SQLite's, which has a file and no server."""
    return any(isinstance(each, sqlite3.Error) for each in _with_origins(error))


def advice(error: BaseException) -> str:
    """Return what to do about a failure to connect that passes."""
    if lacks_descriptors(error):
        return MORE_DESCRIPTORS
    if lacks_threads(error):
        return MORE_THREADS
    if is_sqlite(error):
        return "Find out who keeps the file locked, another program or a long transaction, or give it more time"
    if any(_SERVER_IS_FULL.search(str(each)) for each in _with_origins(error)):
        return "Raise that limit of the server's, or have its clients open fewer connections"
    return DatabaseUnreachable.advice


def forget_frames(error: BaseException) -> None:
    """Cut an error's traceback, and those of the errors that it came from: the drivers' frames have the password."""
    for each in _with_origins(error):
        each.__traceback__ = None


def forget_locals(error: BaseException) -> None:
    """Drop what the frames of a failure refer to: a cursor, above all.

    The failure reaches the event loop. Were the cursor finalised there, with the last reference to the failure, the
    loop would wait for the statement that the connection executes by then, and could interrupt it no more.
    """
    for each in _with_origins(error):
        traceback.clear_frames(each.__traceback__)


def _with_origins(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it came from, each once."""
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        left += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
