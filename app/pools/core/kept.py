"""A place of a budget for one connection that is kept, and used by many at once, instead of being lent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.pools.core.budget import LOCK, Budget
from app.pools.core.entries import Entry
from app.pools.errors import PoolTimeout


class KeptPlace:
    """A member of a budget that needs one place, until it is given up.

    Args:
        budget: whose place it is.
        let_go: has the connection closed for another's sake, if nobody needs it now; returns whether it is going to be.
            Unless given, it is not.
    """

    def __init__(self, budget: Budget, let_go: Callable[[], bool] = bool) -> None:
        self._budget = budget
        self._let_go = let_go
        self._place: Entry[Any] | None = None
        self._wanted = False
        budget.join(self)

    def taken(self) -> bool:
        """Take the place, or have others make room for it. Returns whether it is had. Called without the lock."""
        if self._place is None:
            self._wanted = True
            self.serve_waiters()
            if self._place is None:
                self._budget.reclaim(self)
        return self.held

    @property
    def held(self) -> bool:
        """Whether the place is had."""
        return self._place is not None

    def give_up(self) -> None:
        """Give the place back, or want it no more."""
        with LOCK:
            place, self._place = self._place, None
            self._wanted = False
        self._budget.withdraw(self)
        if place is not None:
            self._budget.give(place)

    def timed_out(self, pool: str, key: str, waited: float) -> PoolTimeout:
        """Return the error for who has waited in vain."""
        budget = self._budget
        longest = budget.longest_held()
        return PoolTimeout(
            pool,
            key,
            capacity=1,
            in_use=0,
            waiters=1,
            waited=waited,
            longest_holder=None if longest is None else longest.held(),
            total=budget.capacity,
            sharers=budget.sharers,
            setting=budget.setting,
        )

    # What the budget asks of a member

    def serve_waiters(self) -> None:
        """Take a place that has become free, if it is wanted."""
        with LOCK:
            if self._wanted and self._place is None:
                place: Entry[Any] = Entry(None)
                if self._budget.take(self, place):
                    self._place = place
        if self.held:
            self._budget.withdraw(self)

    def yield_idle(self) -> bool:
        """Have the connection closed, if nobody needs it now. Returns whether it is going to be."""
        return self.held and self._let_go()

    def share(self, wanted: bool) -> None:
        """Do nothing: what is kept is not given back after each use."""

    def longest_held(self) -> Entry[Any] | None:
        """Return nothing: nobody has checked it out."""
        return None
