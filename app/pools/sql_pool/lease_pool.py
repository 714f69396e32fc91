"""SQLAlchemy's ``Pool`` on the pools' own core, so that Engine, ORM and AsyncEngine lease from a bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from sqlalchemy.pool import Pool
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util.concurrency import await_, greenlet_spawn

from app.pools.core.bucket import Bucket, Entry, Limits
from app.pools.core.holders import CallSite


class Request(NamedTuple):
    """What an engine's checkout cannot be told through SQLAlchemy's ``connect()``."""

    timeout: float | None
    """Seconds to wait for a connection."""
    site: CallSite
    """Who asks; below an AsyncEngine the stack shows only SQLAlchemy."""


_request: ContextVar[Request | None] = ContextVar("request", default=None)


@contextmanager
def requested(timeout: float | None, site: CallSite) -> Iterator[None]:
    """Have the checkout in this block wait ``timeout`` seconds, in the name of ``site``."""
    token = _request.set(Request(timeout, site))
    try:
        yield
    finally:
        _request.reset(token)


class Record(_ConnectionRecord):
    """A connection in SQLAlchemy's wrapping, which knows the bucket's entry that it is leased as."""

    entry: Entry[Record]
    cursor: Any = None
    """The driver's cursor that ``execute_query`` uses again and again."""


class LeasePool(Pool):
    """A SQLAlchemy pool whose connections are a bucket's entries.

    The raw connections rest in autocommit mode, as ``execute_query`` uses them. An Engine's lease switches to
    transactions at the checkout (``lend``) and back at its return (``take_back``).

    Args:
        creator: what SQLAlchemy gives to open a connection with.
        label: the database's name, without secrets.
        limits: the cap and the times.
        lend: called with the DBAPI connection before an Engine gets it.
        take_back: called with the DBAPI connection after an Engine returned it.
        close: closes a connection from any thread; ``close()`` unless given.
        usable: says without a round trip whether an idle connection still works.
    """

    def __init__(
        self,
        creator: Any,
        label: str = "",
        limits: Limits | None = None,
        lend: Callable[[Any], None] | None = None,
        take_back: Callable[[Any], None] | None = None,
        close: Callable[[Record], None] | None = None,
        usable: Callable[[Entry[Record], float], bool] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(creator, **options)
        self._lend = lend
        self._take_back = take_back
        self.bucket: Bucket[Record] = Bucket(
            "sql",
            label,
            limits or Limits(capacity=1),
            create=self._create_connection,
            create_async=self._create_async if self._is_asyncio else None,
            destroy=close or Record.close,
            usable=usable,
        )

    def _create_connection(self) -> Record:
        return Record(self)

    async def _create_async(self) -> Record:
        record: Record = await greenlet_spawn(self._create_connection)
        return record

    def _do_get(self) -> Record:
        request = _request.get()
        timeout = None if request is None else request.timeout
        entry = await_(self.bucket.checkout_async(timeout)) if self._is_asyncio else self.bucket.checkout(timeout)
        record = entry.resource
        record.entry = entry
        if request is not None:
            entry.site = request.site
        if self._lend is not None:
            try:
                self._lend(record.dbapi_connection)
            except BaseException:
                self.bucket.discard(entry)
                raise
        return record

    def _do_return_conn(self, record: Record) -> None:  # type: ignore[override]
        connection = record.dbapi_connection
        if connection is None or record._is_hard_or_soft_invalidated():
            self.bucket.discard(record.entry)
            return
        if self._take_back is not None:
            try:
                self._take_back(connection)
            except BaseException:
                self.bucket.discard(record.entry)
                raise
        self.bucket.give_back(record.entry)

    def dispose(self) -> None:
        """Close the idle connections; those that are leased are closed at their return."""
        self.bucket.clear()

    def recreate(self) -> LeasePool:
        """Return this pool: ``Engine.dispose()`` closes connections, the pool itself goes on."""
        return self

    def status(self) -> str:
        """Return a line about the pool's connections."""
        figures = self.bucket.stats()
        return ", ".join(f"{name} {figures[name]}" for name in ("total", "active", "idle", "waiting", "capacity"))
