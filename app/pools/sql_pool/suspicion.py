"""Suspicion: whether a connection that was idle still works, found out with as few questions as possible."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator

from app.pools.core.entries import Entry
from app.pools.sql_pool.record import Record

PROBE_AFTER = 0.001
"""Seconds of idleness after which a connection's socket is looked at before it is used: within them a server's end is
no likelier than during the statement itself, and the look costs a hundredth of a short Session."""
PING_AFTER = 30.0
"""Seconds of idleness after which a connection is asked before it is used."""
PING_WITHIN = 0.5
"""Seconds within which a connection that is asked must answer. If one does not, the network is silent."""


class Suspicion:
    """What makes one database's idle connections suspect, and who asks them.

    Args:
        ping: asks a connection whether it works.
        ping_async: asks a connection of a task; raises ``TimeoutError`` if it does not answer.
        silent: what to do when one does not answer: to ask the others in turn would keep the caller as long for each.
    """

    def __init__(
        self,
        ping: Callable[[Record], bool] | None,
        ping_async: Callable[[Record], Awaitable[bool]] | None,
        silent: Callable[[], None],
    ) -> None:
        self._ping = ping
        self._ping_async = ping_async
        self._silent = silent
        self._until = 0.0

    def suspect_idle(self) -> None:
        """Have every connection that is idle now asked before its next use."""
        self._until = time.monotonic()

    def works(self, entry: Entry[Record], now: float) -> bool:
        """Say whether a connection that was idle until ``now`` works, as far as a thread or a look can tell."""
        record = entry.resource
        readable = record.readable
        idle = now - entry.idle_since
        if (idle < PROBE_AFTER or not readable()) and idle < PING_AFTER and entry.idle_since > self._until:
            return True
        if self._ping is None:
            return not readable()  # a task asks it afterwards, for here it would block the event loop
        if self._ping(record):
            return True
        record.mark_broken()
        if time.monotonic() - now >= PING_WITHIN:
            self._silent()
        return False

    def is_suspect(self, entry: Entry[Record]) -> bool:
        """Say whether a task that was leased a connection has to ask it, now that ``works`` has let it pass."""
        idle_since = entry.idle_since
        if entry.leased_at - idle_since < PING_AFTER and idle_since > self._until:
            return False
        return self._ping_async is not None

    async def answers(self, record: Record) -> bool:
        """Ask a connection, in a task, whether it works."""
        assert self._ping_async is not None
        try:
            return await self._ping_async(record)
        except TimeoutError:
            self._silent()
            return False

    def ask(self, entries: Iterator[Entry[Record]], put_back: Callable[[Entry[Record], bool], None]) -> None:
        """Ask those of some idle connections that were idle for long, and look at the others."""
        now = time.monotonic()
        for entry in entries:
            works = self.works(entry, now)
            _note(entry, now)
            put_back(entry, works)

    async def ask_async(
        self, entries: Iterator[Entry[Record]], put_back: Callable[[Entry[Record], bool], None]
    ) -> None:
        """Do what ``ask`` does, in a task."""
        for entry in entries:
            now, works = time.monotonic(), False
            try:
                works = await self._works_async(entry.resource, now - entry.idle_since)
            finally:
                _note(entry, now)
                put_back(entry, works)

    async def _works_async(self, record: Record, idle: float) -> bool:
        assert self._ping_async is not None
        if record.readable():
            return False
        try:
            return idle < PING_AFTER or await self._ping_async(record)
        except TimeoutError:
            return False


def _note(entry: Entry[Record], now: float) -> None:
    """Let an entry that was asked count as used; one that was only looked at has been idle for as long as before."""
    if now - entry.idle_since >= PING_AFTER:
        entry.idle_since = now
