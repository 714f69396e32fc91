"""Attempts to connect to a database: what became of them, and how long to pause before the next one."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator

from app.pools.errors import ConfigError, ConnectionRefused, DatabaseUnavailable, DatabaseUnreachable, PoolTimeout
from app.pools.sql_pool.failures import advice, forget_frames, is_sqlite, lacks_descriptors, lacks_threads, reason
from app.pools.sql_pool.record import Record

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0


class FailedAttempt(DatabaseUnavailable):
    """An attempt to connect failed, and another one may succeed."""


class Attempts:
    """The attempts to connect to one database, of which each is counted and judged.

    Args:
        label: the database's name, without secrets.
        create: makes a connection.
        create_async: makes a connection for a task.
        permanent: whether a failure to connect will not pass by itself.

    Attributes:
        made: how many attempts there were.
        failed: how many of them failed.
        failure: why the last one failed, if it did and another one may succeed.
    """

    def __init__(
        self,
        label: str,
        create: Callable[[], Record],
        create_async: Callable[[], Awaitable[Record]] | None,
        permanent: Callable[[Exception], bool],
    ) -> None:
        self._label = label
        self._create = create
        self._create_async = create_async
        self._permanent = permanent
        self.forget()

    def forget(self) -> None:
        """Begin anew: in a child process, those of its parent are not its own."""
        self.made = 0
        self.failed = 0
        self.failure: Exception | None = None

    def connect(self) -> Record:
        """Make one, and return the connection.

        Raises:
            FailedAttempt: the server cannot be reached, or cannot take the connection now.
            ConnectionRefused: it will not take it however often it is asked.
        """
        try:
            record = self._create()
        except Exception as error:
            raise self._failed(error) from error
        self._succeeded()
        return record

    async def connect_async(self) -> Record:
        """Do what ``connect`` does, in a task."""
        assert self._create_async is not None
        try:
            record = await self._create_async()
        except Exception as error:
            raise self._failed(error) from error
        self._succeeded()
        return record

    def _succeeded(self) -> None:
        self.made += 1
        self.failure = None

    def _failed(self, error: Exception) -> Exception:
        """Take note of a failure to connect; return what to raise."""
        self.made += 1
        self.failed += 1
        forget_frames(error)
        if self._permanent(error) and not (lacks_descriptors(error) or lacks_threads(error)):
            self.failure = None
            return ConnectionRefused(f"{self._label} {_verdict(error)}: {reason(error)}")
        self.failure = error
        return FailedAttempt(f"{self._label} cannot be reached: {reason(error)}. {advice(error)}")

    def explained(self, timeout: PoolTimeout) -> PoolTimeout:
        """Return what to raise for a timeout: an error that names the failure to connect, if there is one."""
        if self.failure is None:
            return timeout
        unreachable = DatabaseUnreachable(
            timeout.pool,
            timeout.key,
            capacity=timeout.capacity,
            in_use=timeout.in_use,
            waiters=timeout.waiters,
            waited=timeout.waited,
            longest_holder=timeout.longest_holder,
        )
        unreachable.reason = reason(self.failure)
        unreachable.advice = advice(self.failure)
        unreachable.__cause__ = self.failure
        return unreachable


def _verdict(error: Exception) -> str:
    if isinstance(error, ConfigError):
        return "cannot be connected to"
    return "cannot be opened" if is_sqlite(error) else "refuses the connection"


def pauses() -> Iterator[float]:
    """Yield the pauses between attempts to connect, in seconds: growing and jittered, without end."""
    pause = _FIRST_PAUSE
    while True:
        yield pause * (0.5 + random.random())
        pause = min(2 * pause, _LONGEST_PAUSE)
