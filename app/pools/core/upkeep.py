"""The upkeep of a stock: closing what is idle too long, choosing what is found next, reporting leases held too long.

Idle entries are taken out without a lock, as a checkout takes them: of two, one is faster, and the other does without.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from app.pools.core.entries import Entry
from app.pools.core.stock import Stock

log = logging.getLogger(__name__)

T = TypeVar("T")


class TendedStock(Stock[T]):
    """A stock that is looked after, by the housekeeper above all."""

    def sweep(self) -> None:
        """Close what has been idle too long or is too old, and report leases held too long."""
        self._reclaim()
        now = time.monotonic()
        limits = self.limits
        ended: list[Entry[T]] = []
        for entry in self._idle.copy():
            too_long = now - entry.idle_since >= limits.idle_timeout
            spare = self._size - len(ended) > limits.min_idle
            if entry.expires_at <= now or (too_long and spare):
                with contextlib.suppress(ValueError):  # a checkout was faster
                    self._idle.remove(entry)
                    ended.append(entry)
        for entry in ended:
            self._put_away(entry)
        if self._waiters:
            self._serve()
        self._report_leaks(now)

    def prefer(self, wanted: Callable[[T], bool]) -> None:
        """Have the next checkout find, of several idle connections, the coldest that is ``wanted``."""
        if len(self._idle) > 1:
            for entry in self._idle_in_turn():
                found = wanted(entry.resource)
                self._serve(entry)
                if found:
                    return

    def close_surplus(self, seconds: float, spare: Callable[[T], bool]) -> None:
        """Close those that were idle for so long and are ``spare``, but for the last that there is."""
        now = time.monotonic()
        for entry in self._idle_in_turn():
            if self._size > 1 and now - entry.idle_since >= seconds and spare(entry.resource):
                self._put_away(entry)
            else:
                self._serve(entry)

    def _idle_in_turn(self) -> Iterator[Entry[T]]:
        """Take each idle entry, the coldest first, for the caller to pass on, which keeps their order."""
        for _ in range(len(self._idle)):
            try:
                entry = self._idle.popleft()
            except IndexError:  # checkouts were faster
                return
            yield entry

    def _report_leaks(self, now: float) -> None:
        for entry in self._snapshot():
            leased_at = entry.leased_at
            if leased_at and now - leased_at >= self.limits.leak_threshold and entry.reported_at != leased_at:
                entry.reported_at = leased_at
                with self._lock:
                    self._tally.leaks += 1
                log.warning(
                    "a %s connection for %s was not given back yet: %s",
                    self.pool,
                    self.label,
                    entry.held(),
                )
