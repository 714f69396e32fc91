"""SQLAlchemy's ``Pool`` on the pools' own core, so that Engine, ORM and AsyncEngine lease from a bucket."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, cast
from weakref import WeakSet, ref

import sqlalchemy
from greenlet import getcurrent
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import Pool, PoolProxiedConnection
from sqlalchemy.util.concurrency import await_, greenlet_spawn

from app.pools.core.bucket import Entry, Limits
from app.pools.core.budget import Budget
from app.pools.core.holders import CallSite, Surface, look_past, site_above
from app.pools.errors import DatabaseUnavailable
from app.pools.sql_pool.cleaning import AsyncCleaner, Cleaner
from app.pools.sql_pool.connections import ConnectionBucket
from app.pools.sql_pool.drivers import Driver, EngineDriver, SyncDriver
from app.pools.sql_pool.failures import reason
from app.pools.sql_pool.record import Record
from app.pools.sql_pool.suspicion import PING_WITHIN
from app.pools.sql_pool.watchdog import Cutoff

# An Engine or a Session checks out for its user, who is the holder. Some of their methods are compiled from text.
look_past(os.path.dirname(sqlalchemy.__file__) + os.sep, "<sqlalchemy generated ")


class Request(NamedTuple):
    """What an engine's checkout cannot be told through SQLAlchemy's ``connect()``."""

    timeout: float | None
    """Seconds to wait for a connection."""
    site: CallSite | None
    """Who asks, if known."""


_request: ContextVar[Request] = ContextVar("request", default=Request(None, None))  # noqa: B039 - it is immutable


@contextmanager
def requested(timeout: float | None, site: CallSite) -> Iterator[None]:
    """Have the checkout in this block wait ``timeout`` seconds, in the name of ``site``."""
    token = _request.set(Request(timeout, site))
    try:
        yield
    finally:
        _request.reset(token)


class LeasePool(Pool):
    """A SQLAlchemy pool whose connections are a bucket's entries.

    Args:
        creator: what SQLAlchemy gives to open a connection with.
        label: the database's name, without secrets.
        limits: the cap and the times.
        driver: the driver's ways.
        budget: a cap that the connections share with other pools.
    """

    def __init__(
        self, creator: Any, label: str, limits: Limits, driver: Driver, budget: Budget | None = None, **options: Any
    ) -> None:
        super().__init__(creator, **options)
        self._driver = driver
        self._surface = Surface()
        self._leased = threading.local()
        self._losses: WeakSet[BaseException] = WeakSet()
        self._asynchronous = asynchronous = self._is_asyncio  # a property of the dialect's, two calls away
        self.bucket = ConnectionBucket(
            label,
            limits,
            create=self._create_connection,
            create_async=self._create_async if asynchronous else None,
            destroy=self._destroy,
            permanent=driver.permanent,
            ping=None if asynchronous else self._ping,
            ping_async=self._ping_async if asynchronous else None,
            probed=driver.probed,
            budget=budget,
        )
        self.cleaner: Cleaner | AsyncCleaner
        """Ends the leases that left something."""
        if asynchronous:
            self.cleaner = AsyncCleaner(self.bucket, cast(EngineDriver, driver))
        else:
            self.cleaner = Cleaner(self.bucket, cast(SyncDriver, driver))

    def _create_connection(self) -> Record:
        record = Record(self)
        try:
            self._driver.adopt(record)
        except BaseException:
            self._destroy(record)
            raise
        return record

    def _destroy(self, record: Record) -> None:
        if record.probe is not None:
            record.probe.close()
        self._driver.close(record)

    async def _create_async(self) -> Record:
        record: Record = await greenlet_spawn(self._create_connection)
        return record

    def _ping(self, record: Record) -> bool:
        assert record.probe is not None
        with Cutoff(time.monotonic() + PING_WITHIN, record.probe.cut):
            return self._answers(record)

    async def _ping_async(self, record: Record) -> bool:
        async with asyncio.timeout(PING_WITHIN):
            alive: bool = await greenlet_spawn(self._answers, record)
        return alive

    def _answers(self, record: Record) -> bool:
        assert record.dbapi_connection is not None
        try:
            return self._dialect._do_ping_w_event(record.dbapi_connection)
        except Exception:  # noqa: BLE001 - whatever a driver says about it: it does not work
            return False

    def connect(self) -> PoolProxiedConnection:
        """Lease a connection, by a proxy that holds its entry: nothing else does, so that who loses one loses both."""
        entry = self._checkout()
        record = self._leased.record = entry.resource
        record.lease = ref(entry)
        proxy: Any = super().connect()
        proxy.entry = entry
        return cast(PoolProxiedConnection, proxy)

    def _do_get(self) -> Record:
        """Return what ``connect`` has leased, just before in this thread."""
        record: Record = self._leased.record
        return record

    def _checkout(self) -> Entry[Record]:
        timeout, site = _request.get()
        bucket = self.bucket
        if self._asynchronous:
            # SQLAlchemy runs this in a greenlet, whose stack ends at SQLAlchemy; its user is on the one that it left.
            parent = getcurrent().parent
            if site is None and parent is not None:
                site = site_above(parent.gr_frame)
            entry = await_(bucket.checkout_async(timeout, site))
        else:
            entry = bucket.checkout(timeout, self._surface.site() if site is None else site)
        record = entry.resource
        if not record.transactional:
            try:
                self._driver.lend(record)
            except BaseException as error:
                bucket.discard(entry)
                if not isinstance(error, Exception):
                    raise
                # It sends nothing, so nothing but the connection's end can be the cause.
                bucket.suspect_idle()
                raise DatabaseUnavailable(f"the connection to {bucket.label} was lost: {reason(error)}") from error
            record.transactional = True
        return entry

    def _do_return_conn(self, record: Record) -> None:  # type: ignore[override]
        entry = record.lease()
        if entry is None:
            return  # lost with its proxy, as the bucket knows
        if record.dbapi_connection is None:
            # SQLAlchemy has closed it, or it is its user's own from now on (``detach``).
            if record.probe is not None:
                record.probe.close()
            self.bucket.detach(entry)
        elif record._is_hard_or_soft_invalidated():
            self.bucket.discard(entry)
        elif self._driver.end_lease(record):
            self.cleaner.clean(entry)
        else:
            # Still in the Engine's mode, for the next lease may be another Engine's.
            self.bucket.give_back(entry)

    def _invalidate(
        self, connection: PoolProxiedConnection, exception: BaseException | None = None, _checkin: bool = True
    ) -> None:
        if exception is not None:
            self._losses.add(exception)
        super()._invalidate(connection, exception, _checkin)

    def has_lost_by(self, error: DBAPIError) -> bool:
        """Say whether an error means that a connection of this pool is lost."""
        return error.connection_invalidated and error.orig in self._losses

    def dispose(self) -> None:
        """Close the idle connections; those that are leased are closed at their return."""
        self.bucket.clear()

    def recreate(self) -> LeasePool:
        """Return this pool: ``Engine.dispose()`` closes connections, the pool itself goes on."""
        return self

    def status(self) -> str:
        """Return a line about the pool's connections."""
        figures = self.bucket.stats()
        return ", ".join(
            f"{name} {figures[name]}" for name in ("total", "active", "idle", "waiting", "taken", "capacity")
        )
