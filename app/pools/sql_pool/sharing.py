"""The cap that a database's connections have together, those for threads and those for tasks."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from app.pools.core.bucket import Bucket
from app.pools.core.budget import Budget, Spender


class DatabaseBudget(Budget):
    """A budget that knows the buckets which share it, so that who waits in vain learns who has what it waits for.

    Args:
        capacity: connections of all its buckets together, at most.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity, sharers="its threads and tasks")
        self._joining = threading.Lock()
        self._buckets: weakref.WeakSet[Bucket[Any]] = weakref.WeakSet()

    def join(self, member: Spender) -> None:
        """Let ``member`` share the cap."""
        super().join(member)
        assert isinstance(member, Bucket)
        with self._joining:
            self._buckets.add(member)

    def buckets(self) -> list[Bucket[Any]]:
        """Return the buckets that share the cap."""
        with self._joining:
            return list(self._buckets)
