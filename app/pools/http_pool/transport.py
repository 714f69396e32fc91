"""A transport: the connections of one route, synchronous, asynchronous and leased as sessions."""

from __future__ import annotations

import threading
import time
from typing import Any

from app.pools.core.bucket import NEVER, Bucket, Limits
from app.pools.core.budget import Budget
from app.pools.http_pool.adapters import SharedAdapter
from app.pools.http_pool.async_transport import AsyncTransport
from app.pools.http_pool.origins import Origin
from app.pools.http_pool.route import Route
from app.pools.http_pool.sync_transport import SyncTransport
from app.pools.http_pool.tls import Contexts


class Transport:
    """The connections of one route, and how many calls use them.

    A transport that makes room for another one is retired: it takes no new call, and is closed when the last
    one that it serves has ended.
    """

    def __init__(self, route: Route, origin: Origin, contexts: Contexts, leak_threshold: float) -> None:
        self.route = route
        self.origin = origin
        self.last_used = time.monotonic()
        # One cap for threads, tasks and leased sessions together.
        budget = Budget(route.max_connections, f"threads, tasks and sessions at {route.label} together", route.setting)
        self.sync = SyncTransport(route, leak_threshold, budget)
        self.tasks = AsyncTransport(route, origin, leak_threshold, budget)
        self.adapters: Bucket[SharedAdapter] = Bucket(
            "http",
            f"{route.label} session",
            Limits(
                capacity=route.max_connections,
                idle_timeout=route.keepalive,
                max_lifetime=route.max_lifetime,
                leak_threshold=leak_threshold or NEVER,
                setting=route.setting,
            ),
            create=lambda: SharedAdapter(route, contexts, origin),
            destroy=SharedAdapter.shut,
            usable=lambda entry, now: now - entry.idle_since < route.keepalive,
            budget=budget,
        )
        self._lock = threading.Lock()
        self._calls = 0
        self._retired = False

    @property
    def busy(self) -> bool:
        """Whether a call uses it now."""
        return self._calls > 0

    def enter(self) -> bool:
        """Count a call in; ``False`` if the transport takes none any more."""
        with self._lock:
            if self._retired:
                return False
            self._calls += 1
            return True

    def leave(self) -> None:
        """Count a call out."""
        self.last_used = time.monotonic()
        with self._lock:
            self._calls -= 1
            last = self._retired and not self._calls
        if last:
            self._close(time.monotonic())

    def retire(self) -> None:
        """Take no new call, and close when the last one has ended."""
        with self._lock:
            self._retired = True
            unused = not self._calls
        if unused:
            self._close(time.monotonic())

    def buckets(self) -> tuple[Bucket[Any], ...]:
        """Return the buckets of the connections for threads, of those for tasks, and of leased sessions."""
        return self.sync.bucket, self.tasks.slots, self.adapters

    def refuse(self) -> None:
        """Hand out nothing more, fail those who wait, close what is idle."""
        with self._lock:
            self._retired = True
        for bucket in self.buckets():
            bucket.refuse()

    def drain(self, deadline: float) -> list[str]:
        """Wait for what is in use until ``deadline`` (monotonic), close the rest; return who holds it."""
        holders = []
        for bucket in self.buckets():
            holders += bucket.drain(deadline - time.monotonic())
        self.tasks.close_idle_loops()
        self.tasks.close(max(deadline, time.monotonic() + 1.0))
        return holders

    def _close(self, deadline: float) -> None:
        self.refuse()
        self.tasks.close(deadline)

    def sweep(self) -> None:
        """Close connections that are idle too long."""
        self.sync.bucket.sweep()
        self.adapters.sweep()
        self.tasks.slots.sweep()
        self.tasks.sweep()

    def connections(self) -> dict[str, int]:
        """Return how many connections are open and in use, and how many calls wait for one."""
        sync, tasks, leased = (bucket.stats() for bucket in self.buckets())
        return {
            "total": sync["total"] + leased["total"] + max(self.tasks.open_connections(), tasks["active"]),
            "active": sync["active"] + tasks["active"] + leased["active"],
            "queued": sync["waiting"] + tasks["waiting"] + leased["waiting"],
            "cleaned": sync["cleaned"] + leased["cleaned"],
        }

    def forget_after_fork(self) -> None:
        """Start empty in a child process."""
        self._lock = threading.Lock()
        self._calls = 0
        self.sync.bucket.forget_after_fork()
        self.adapters.forget_after_fork()
        self.tasks.forget_after_fork()
