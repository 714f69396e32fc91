"""The sides of a pool's databases: one for threads, and one for the tasks of each event loop."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

from app.pools.core.bucket import NEVER, Bucket, Limits
from app.pools.core.budget import Budget
from app.pools.core.settings import SQLPoolSettings
from app.pools.errors import MORE_DESCRIPTORS, DatabaseUnavailable
from app.pools.sql_pool.aiosqlite_driver import AiosqliteDriver
from app.pools.sql_pool.async_side import AsyncSide
from app.pools.sql_pool.config import DatabaseConfig
from app.pools.sql_pool.failures import lacks_descriptors
from app.pools.sql_pool.native_side import NativeSide
from app.pools.sql_pool.sqlite_driver import SQLiteDriver
from app.pools.sql_pool.sqlite_forks import register
from app.pools.sql_pool.sync_side import SyncSide
from app.pools.sql_pool.threaded_side import ThreadedSide

log = logging.getLogger(__name__)

_FAIR_AFTER = 0.01
_MOST_THREADS = 10_000
"""More than there are connections: a call that has one never waits for a thread."""

Side: TypeAlias = SyncSide | AsyncSide
HoldBack: TypeAlias = Callable[[Bucket[Any]], None]
"""The pool's. Not kept here: the two would live on until the garbage collector comes."""


class Sides:
    """Opens sides, finds them again, and remembers what was paused alone. Whoever calls holds the pool's lock.

    Only ``for_threads`` and ``for_loops`` may be looked into without it. Each stays the same dict for ever, so that the
    pool can keep them at hand.

    Args:
        settings: the caps and the times.
    """

    def __init__(self, settings: SQLPoolSettings) -> None:
        self._limits = Limits(
            capacity=settings.max_connections,
            checkout_timeout=settings.checkout_timeout,
            min_idle=settings.min_connections,
            idle_timeout=settings.max_idle_time,
            max_lifetime=settings.max_lifetime or NEVER,
            fair_after=_FAIR_AFTER,
            leak_threshold=settings.leak_threshold or NEVER,
        )
        self.for_threads: dict[DatabaseConfig, SyncSide] = {}
        # Held strongly until a loop is found closed: what its connections leave open is closed by then only.
        self.for_loops: dict[asyncio.AbstractEventLoop, dict[DatabaseConfig, AsyncSide]] = {}
        self._budgets: dict[DatabaseConfig, Budget] = {}
        self._paused_alone: set[DatabaseConfig] = set()
        self._resumed_alone: set[DatabaseConfig] = set()  # while all others are paused
        self.clear()

    def clear(self) -> None:
        """Begin anew. What was paused alone stays so: a forked child goes on with it."""
        self._memory_name = uuid.uuid4().hex
        self.for_threads.clear()
        self.for_loops.clear()
        self._budgets.clear()
        self._executor: ThreadPoolExecutor | None = None

    # One database

    def open(self, config: DatabaseConfig, hold_back: HoldBack) -> SyncSide:
        """Return a database's side for threads, a new one if there is none.

        Args:
            config: the database.
            hold_back: pauses the bucket of a new side if all databases are paused.
        """
        side = self.for_threads.get(config)
        if side is None:
            with _descriptors_for(config):
                side = self.for_threads[config] = self._make(config)
            self._take_charge(side, config, hold_back)
        return side

    def open_async(self, loop: asyncio.AbstractEventLoop, config: DatabaseConfig, hold_back: HoldBack) -> AsyncSide:
        """Return a database's side for the tasks of ``loop``, which runs, as ``open`` does."""
        sides = self.for_loops.setdefault(loop, {})
        side = sides.get(config)
        if side is None:
            with _descriptors_for(config):
                side = sides[config] = self._make_async(config, hold_back)
            self._take_charge(side, config, hold_back)
        return side

    def of(self, config: DatabaseConfig) -> list[Side]:
        """Return every side of a database that has one for threads."""
        asynchronous = [sides[config] for sides in list(self.for_loops.values()) if config in sides]
        return [self.for_threads[config], *asynchronous]

    def _make(self, config: DatabaseConfig) -> SyncSide:
        _check_class(config)
        if config.backend == "sqlite":
            return SyncSide(SQLiteDriver(config, self._memory_name), self._limits, config.label, self._budget(config))
        from app.pools.sql_pool.psycopg_driver import PsycopgDriver  # only who uses PostgreSQL needs the extra

        return SyncSide(PsycopgDriver(config), self._limits, config.label, self._budget(config))

    def _make_async(self, config: DatabaseConfig, hold_back: HoldBack) -> AsyncSide:
        _check_class(config)
        if config.backend == "sqlite":
            threads = self.open(config, hold_back)
            assert isinstance(threads.driver, SQLiteDriver)
            driver = AiosqliteDriver(config, threads.driver.source)
            return ThreadedSide(driver, self._limits, config.label, self._budget(config), threads, self._threads())
        from app.pools.sql_pool.asyncpg_driver import AsyncpgDriver  # only who uses PostgreSQL needs the extra

        return NativeSide(AsyncpgDriver(config), self._limits, config.label, self._budget(config))

    def _take_charge(self, side: Side, config: DatabaseConfig, hold_back: HoldBack) -> None:
        """Do with a new side what was done with the others before it came."""
        if config not in self._resumed_alone:
            hold_back(side.bucket)
        if config in self._paused_alone:
            side.bucket.pause()
        if config.backend == "sqlite":
            register.add_bucket(side.bucket)

    def _budget(self, config: DatabaseConfig) -> Budget:
        """Return the cap that the connections of a database have together, those for threads and for tasks."""
        budget = self._budgets.get(config)
        if budget is None:
            budget = self._budgets[config] = Budget(self._limits.capacity, sharers="its threads and tasks")
        return budget

    def _threads(self) -> ThreadPoolExecutor:
        """Return the threads for what tasks do with SQLite connections, of which there is a limited number."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="poolwire-sql")
        return self._executor

    # Pausing

    def note_pause(self, config: DatabaseConfig) -> None:
        """Take note that a database is paused, whatever becomes of the others."""
        self._paused_alone.add(config)
        self._resumed_alone.discard(config)

    def note_resume(self, config: DatabaseConfig, others_paused: bool) -> None:
        """Take note that a database is not paused, though the others are if ``others_paused``."""
        self._paused_alone.discard(config)
        if others_paused:
            self._resumed_alone.add(config)

    def note_pause_of_all(self) -> None:
        """Take note that all databases are paused, those that were resumed alone among them."""
        self._resumed_alone.clear()

    def note_resume_of_all(self) -> None:
        """Take note that no database is paused."""
        self._paused_alone.clear()
        self._resumed_alone.clear()

    # All

    def all(self) -> list[Side]:
        """Return every side of every database."""
        # Of copies: what a signal's handler or a finaliser does with the pool meanwhile changes the maps themselves.
        maps: list[Mapping[DatabaseConfig, Side]] = [self.for_threads, *self.for_loops.values()]
        return [side for sides in maps for side in list(sides.values())]

    def take_those_of_closed_loops(self) -> list[AsyncSide]:
        """Return the sides of event loops that are no more, to be abandoned; none is found any more."""
        closed = [self.for_loops.pop(loop) for loop in list(self.for_loops) if loop.is_closed()]
        return [side for sides in closed for side in sides.values()]

    def end(self) -> list[Callable[[], None]]:
        """Forget every side, and what was paused alone.

        Returns:
            what is to be called then, without the lock, to close what is in no bucket.
        """
        closing: list[Callable[[], None]] = [side.close for side in self.for_threads.values()]
        if self._executor is not None:
            closing.append(partial(self._executor.shutdown, wait=False))
        self.note_resume_of_all()
        self.clear()
        return closing


def abandon(sides: Iterable[AsyncSide]) -> None:
    """Close the connections of sides whose event loop is closed. Called without a lock."""
    for side in sides:
        side.bucket.refuse()
        for holder in side.bucket.end_leases():
            log.warning("a connection was leased when its event loop closed, and is closed, too: %s", holder)


@contextmanager
def _descriptors_for(config: DatabaseConfig) -> Iterator[None]:
    """Raise a ``DatabaseUnavailable``, which passes, if a driver cannot be imported for want of a file descriptor.

    What imports it may say then that it is not installed.
    """
    try:
        yield
    except DatabaseUnavailable:
        raise
    except Exception as error:
        if not lacks_descriptors(error):
            raise
        lack = "no file descriptor is left to load its driver with"
        raise DatabaseUnavailable(f"{config.label} cannot be used now: {lack}. {MORE_DESCRIPTORS}") from error


def _check_class(config: object) -> None:
    if not isinstance(config, DatabaseConfig):  # not shown: it may be a URL, password and all
        raise TypeError(
            f"a DatabaseConfig is needed, not {type(config).__name__}; get_sqlite_config(path) and "
            "DatabaseConfig.from_url(url) make one"
        )
