"""The life of a pool: start, stop, housekeeping, fork safety and statistics, the same for all three."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from types import TracebackType
from typing import Any, Self

from app.pools.core import forks
from app.pools.core.bucket import Bucket
from app.pools.core.housekeeper import housekeeper
from app.pools.core.statistics import pool_stats
from app.pools.errors import LeaseLeaked, PoolClosed
from app.pools.pool import Health, PoolStats


class ManagedPool(ABC):
    """The base of a pool whose keys come and go.

    A pool starts by itself at its first use, so that ``get_zmq_pool().socket(...)`` needs no ceremony; in a
    container, ``Lifecycle`` starts it, so that a wrong setting stops the program before it serves.

    A subclass gives ``name`` and the six hooks below, and calls ``_hold_back`` for each bucket that it makes. Its
    own lock guards its map of keys; no hook is called with that lock held.
    """

    name: str

    def __init__(self, *, sweep_interval: float) -> None:
        self._sweep_interval = sweep_interval
        self._lock = threading.RLock()
        # Held for all of a stop: what a start opened meanwhile, the stop would close.
        self._turning = threading.RLock()
        self._running = False
        self._closed = False
        self._stopping = False  # also after a stop that an interrupt broke off: the next one goes on with it
        self._paused = False

    # Hooks

    @abstractmethod
    def _buckets(self) -> Iterable[Bucket[Any]]:
        """Return the buckets of all keys."""

    @abstractmethod
    def _refuse(self) -> None:
        """Hand out nothing more, fail those who wait, and close what is idle."""

    @abstractmethod
    def _drain(self, deadline: float) -> list[str]:
        """Wait for the leases until ``deadline`` (monotonic seconds), close the rest; return who holds one."""

    @abstractmethod
    def _figures(self) -> Iterable[tuple[str, dict[str, Any]]]:
        """Return a label and the figures of each key."""

    @abstractmethod
    def sweep(self) -> None:
        """Close what has expired. Called by the housekeeper."""

    def forget_after_fork(self) -> None:
        """Drop, in a child process, what the parent opened. A subclass extends this."""
        self._lock = threading.RLock()
        self._turning = threading.RLock()
        self._running = self._stopping = False

    # Life

    @property
    def closed(self) -> bool:
        """Whether the pool was stopped and not started again."""
        return self._closed

    @property
    def paused(self) -> bool:
        """Whether nothing is handed out until ``resume``."""
        return self._paused

    def start(self) -> None:
        """Make ready to serve, also after a ``stop``, whose end is waited for; does nothing if the pool runs."""
        with self._turning:
            if self._stopping:
                with contextlib.suppress(LeaseLeaked):  # told to who began it
                    self._stop_by(time.monotonic())
            with self._lock:
                self._closed = False
                self._ensure_running()

    def _ensure_running(self) -> None:
        """Start at the first use. Raises ``PoolClosed`` if the pool was stopped."""
        if self._running:
            return
        with self._lock:
            if self._closed:
                raise PoolClosed(self.name)
            if not self._running:
                forks.register(self)
                housekeeper.register(self, self._sweep_interval)
                self._running = True

    def stop(self, timeout: float = 10.0) -> None:
        """Refuse new leases, wait for those out, close everything; does nothing if the pool is stopped.

        While another thread stops the pool this waits for it, as long as it would wait for leases.

        Args:
            timeout: seconds to wait for leases to be given back.

        Raises:
            LeaseLeaked: some were not. The error names each holder; everything else is closed.
        """
        deadline = time.monotonic() + timeout
        if not self._turning.acquire(timeout=min(max(0.0, timeout), threading.TIMEOUT_MAX)):
            return
        try:
            self._stop_by(deadline)
        finally:
            self._turning.release()

    def _stop_by(self, deadline: float) -> None:
        with self._lock:
            self._closed = True
            if not (self._running or self._stopping):
                return
            self._stopping = True
            self._running = self._paused = False
        housekeeper.unregister(self)
        self._refuse()
        holders = self._drain(deadline)
        self._stopping = False
        if holders:
            raise LeaseLeaked(self.name, holders)

    async def start_async(self) -> None:
        """Do what ``start`` does without blocking the event loop."""
        await _in_a_thread_of_its_own(self.start)

    async def stop_async(self, timeout: float = 10.0) -> None:
        """Do what ``stop`` does without blocking the event loop."""
        await _in_a_thread_of_its_own(self.stop, timeout)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await self.start_async()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop_async()

    # Pausing

    def pause(self) -> None:
        """Hand out nothing until ``resume``; those who ask wait, up to their timeouts. Leases out go on."""
        with self._lock:
            self._paused = True
        for bucket in self._buckets():
            bucket.pause()

    def resume(self) -> None:
        """Hand out again, first to those who waited."""
        with self._lock:
            self._paused = False
        for bucket in self._buckets():
            bucket.resume()

    def _hold_back(self, bucket: Bucket[Any]) -> None:
        """Pause a new bucket if the pool is paused. Called with the lock held, as the bucket joins the others."""
        if self._paused:
            bucket.pause()

    # What it does now

    def get_stats(self) -> PoolStats:
        """Return the counts of all keys, as they are now."""
        return pool_stats(self._figures(), cleanup_thread_alive=housekeeper.alive)

    def health(self) -> Health:
        """Say whether the pool can serve, without sending anything to a peer."""
        reasons = [f"the {self.name} pool is stopped"] if self._closed else []
        return {"healthy": not reasons, "reasons": reasons}


async def _in_a_thread_of_its_own(turn: Callable[..., None], *args: float) -> None:
    """Do what ``asyncio.to_thread`` does, whose threads may all be in the calls that a stop is to end."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="poolwire-turn")
    try:
        await asyncio.get_running_loop().run_in_executor(thread, copy_context().run, turn, *args)
    finally:
        thread.shutdown(wait=False)
