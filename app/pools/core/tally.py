"""What a bucket counts about its connections' lives."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Any

from app.pools.core.entries import Entry
from app.pools.core.statistics import Histogram, recent_summary

_REMEMBERED_USES = 4096


class Tally:
    """A bucket's counters. They change under the bucket's lock, ``used`` excepted."""

    __slots__ = ("cleaned", "discarded", "leaks", "misses", "retired_uses", "timeouts", "used", "waits")

    def __init__(self) -> None:
        self.misses = 0
        self.retired_uses = 0
        """How often those were checked out that are closed by now."""
        self.cleaned = 0
        self.discarded = 0
        self.timeouts = 0
        self.leaks = 0
        self.waits = Histogram()
        # The latest leases' durations. Appending is atomic, so that a return takes no lock for it.
        self.used: deque[float] = deque(maxlen=_REMEMBERED_USES)

    def summary(self, entries: Collection[Entry[Any]], *, waiting: int, capacity: int) -> dict[str, Any]:
        """Return a bucket's figures; times are seconds. Called under the bucket's lock."""
        active = sum(1 for entry in entries if entry.leased_at)
        # Each entry is counted by its holder alone, so no count is lost and a checkout takes no lock for it.
        uses = self.retired_uses + sum(entry.uses for entry in entries)
        return {
            "total": len(entries),
            "active": active,
            "idle": len(entries) - active,
            "waiting": waiting,
            "capacity": capacity,
            "hits": max(0, uses - self.misses),
            "misses": self.misses,
            "cleaned": self.cleaned,
            "discarded": self.discarded,
            "timeouts": self.timeouts,
            "leaks": self.leaks,
            "wait": self.waits.summary(),
        }

    def recent_uses(self) -> dict[str, float]:
        """Return how long the latest leases took. Sorts them, so it is not called under the lock."""
        return recent_summary(self.used.copy())
