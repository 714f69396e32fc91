"""The process's default pools, behind ``get_zmq_pool()`` and its twins."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from app.pools.core import forks


class Stoppable(Protocol):
    """A pool that knows whether it was stopped."""

    @property
    def closed(self) -> bool:
        """Whether the pool was stopped."""


P = TypeVar("P", bound=Stoppable)


class DefaultPool(Generic[P]):
    """Makes a pool at the first call and returns the same one to every caller until that one is stopped.

    Args:
        factory: makes the pool; called at most once at a time, however many threads ask.
    """

    def __init__(self, factory: Callable[[], P]) -> None:
        self._factory = factory
        # Re-entrant, because a finaliser that runs while this thread holds it may ask for the pool too.
        self._lock = threading.RLock()
        self._pool: P | None = None

    def get(self) -> P:
        """Return the pool, made or made anew if need be."""
        pool = self._pool
        if pool is None or pool.closed:
            forks.register(self)
            with self._lock:
                pool = self._pool
                if pool is None or pool.closed:
                    pool = self._pool = self._factory()
        return pool

    def forget_after_fork(self) -> None:
        """Replace the lock, which a thread of the parent may have held; the pool itself survives the fork."""
        self._lock = threading.RLock()
