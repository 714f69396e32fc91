"""The contract that every pool fulfils, ours and a user's own."""

from __future__ import annotations

from typing import Any, Protocol, TypedDict, runtime_checkable


class Metrics(TypedDict):
    """The totals of one pool. Pools may add keys; none is ever removed."""

    total_connections: int
    active_connections: int
    pool_hits: int
    pool_misses: int
    cleanup_count: int


class PoolStats(TypedDict):
    """What ``get_stats()`` returns.

    ``metrics`` are totals over all keys; ``pools`` has a mapping for each key, whose label never holds a
    secret; ``active`` means checked out now. ``cleanup_count`` counts the connections that were closed for their age,
    for having been idle, or to give up their place, whoever closed them.
    """

    metrics: Metrics
    pools: dict[str, dict[str, Any]]
    cleanup_thread_alive: bool


class Health(TypedDict):
    """What ``health()`` returns: whether the pool can serve, and the reasons if it cannot."""

    healthy: bool
    reasons: list[str]


@runtime_checkable
class Pool(Protocol):
    """Something that owns connections, starts, and stops.

    A pool of your own (Redis, NATS, gRPC) that fulfils this joins the container, its lifecycle, the
    metrics and the health page like the three that are shipped.
    """

    def start(self) -> None:
        """Make ready to serve. Raises what keeps the pool from serving; idempotent."""

    def stop(self, timeout: float = 10.0) -> None:
        """Refuse new leases, wait up to ``timeout`` seconds for those out, close everything; idempotent."""

    async def start_async(self) -> None:
        """Do what ``start`` does without blocking the event loop."""

    async def stop_async(self, timeout: float = 10.0) -> None:
        """Do what ``stop`` does without blocking the event loop."""

    def get_stats(self) -> PoolStats:
        """Return the counts as they are now."""

    def health(self) -> Health:
        """Say whether the pool can serve, without sending anything to a peer."""
