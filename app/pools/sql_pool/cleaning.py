"""The end of a lease that left something: its connection is cleaned for the next one, or closed if it cannot be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial

from app.pools.core.bucket import Entry
from app.pools.sql_pool.connections import ConnectionBucket
from app.pools.sql_pool.drivers import EngineDriver, SyncDriver
from app.pools.sql_pool.loop_tasks import LoopTasks
from app.pools.sql_pool.record import Record
from app.pools.sql_pool.watchdog import Cutoff

_SECONDS = 2.0
"""For how long a server may clean a connection."""


class Cleaner:
    """Cleans the connections of threads.

    Args:
        bucket: where they belong.
        driver: knows how.
    """

    def __init__(self, bucket: ConnectionBucket, driver: SyncDriver) -> None:
        self._bucket = bucket
        self._driver = driver

    def clean(self, entry: Entry[Record]) -> None:
        """Give a connection back without a transaction and without residue."""
        clean = False
        try:
            with suppress(Exception):  # a connection that cannot be cleaned is of no use to anybody
                clean = self._clean(entry.resource)
        finally:
            (self._bucket.give_back if clean else self._bucket.discard)(entry)

    def _clean(self, record: Record) -> bool:
        driver = self._driver
        open_transaction, residue = driver.in_transaction(record), driver.residue(record)
        if not (open_transaction or residue):
            return True
        with limited(record):
            if open_transaction:
                driver.rollback(record)
            if not residue:
                return True
            commit_each(driver, record)
            return driver.reset(record)


class AsyncCleaner:
    """Cleans the connections of an event loop's tasks in the background, where no cancellation strands them.

    Args:
        bucket: where they belong.
        driver: knows how.
    """

    def __init__(self, bucket: ConnectionBucket, driver: EngineDriver) -> None:
        self._bucket = bucket
        self._driver = driver
        self._tasks = LoopTasks(asyncio.get_running_loop())

    def clean(self, entry: Entry[Record]) -> asyncio.Task[None] | None:
        """Give a connection back without a transaction and without residue, once the returned task has ended."""
        if not self._tasks.here:  # its task was dropped unfinished, and its loop has gone or runs elsewhere
            self._bucket.discard(entry)
            return None

        def ended(task: asyncio.Task[None]) -> None:
            self._bucket.cleaning.discard(entry)
            if task.cancelled():  # perhaps before it began
                self._bucket.discard(entry)

        task = self._tasks.start(partial(self._clean, entry))
        self._bucket.cleaning.add(entry)
        task.add_done_callback(ended)
        return task

    async def _clean(self, entry: Entry[Record]) -> None:
        clean = False
        with suppress(Exception):  # a connection that cannot be cleaned is of no use to anybody
            async with asyncio.timeout(_SECONDS):
                clean = await self._driver.clean(entry.resource)
        (self._bucket.give_back if clean else self._bucket.discard)(entry)


def commit_each(driver: SyncDriver, record: Record) -> None:
    """Have a connection that an Engine had last commit each statement by itself."""
    if record.transactional:
        driver.take_back(record)
        record.transactional = False


def limited(record: Record) -> AbstractContextManager[object]:
    """Have a connection fail unless a block in which it is cleaned, in this thread, ends in time."""
    if record.probe is None:
        return nullcontext()
    return Cutoff(time.monotonic() + _SECONDS, record.probe.cut)


@contextmanager
def limited_async(record: Record) -> Iterator[None]:
    """Do what ``limited`` does, in a task."""
    if record.probe is None:
        yield
        return
    # Not the probe's cut: the descriptor may be another connection's by then.
    timer = asyncio.get_running_loop().call_later(_SECONDS, record.raw.terminate)
    try:
        yield
    finally:
        timer.cancel()
