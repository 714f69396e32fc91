"""What a bucket holds: entries, each a connection with its history, and the limits they live under."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.pools.core.holders import CallSite, render

T = TypeVar("T")

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections a bucket has, and for how long. All times are seconds."""

    capacity: int
    """Connections, at most; never exceeded, not even for a moment."""
    checkout_timeout: float = 5.0
    """How long a checkout waits unless the call says otherwise."""
    min_idle: int = 0
    """Idle connections that the idle timeout leaves open."""
    idle_timeout: float = NEVER
    """How long a connection may be idle."""
    max_lifetime: float = NEVER
    """How old a connection may get, from its creation."""
    lifetime_jitter: float = 0.1
    """The share of ``max_lifetime`` taken off at random, so that connections made together do not end together."""
    fair_after: float = 0.0
    """The wait after which a waiter is handed an entry directly instead of competing for it."""
    paused_timeout: float = 0.0
    """How long a checkout waits while the bucket is paused, if that is longer than ``checkout_timeout``."""
    setting: str | None = None
    """Where the capacity is set, for errors: the pool's setting unless given, ``""`` if nowhere."""
    leak_threshold: float = NEVER
    """How long a lease may be held before it is reported, once, with the stack of its checkout."""


class Entry(Generic[T]):
    """A place below the cap, then the connection made for it, and its history. Its holder alone may write to it.

    A bucket knows its entries weakly: one that nobody has any more, neither the idle stack nor a lessee nor who makes
    its connection, was lost, and says so. That costs a lease nothing, as a finaliser of its own would, and whatever
    interrupts a thread, at whichever instruction, no place is lost for good.

    Attributes:
        resource: the connection; there is none before ``made``.
        made: whether the connection was made.
        expires_at: when it has lived long enough, on the monotonic clock.
        lost: what to call with an entry that was lost; ``None`` once the bucket has done with it.

    Args:
        lost: returns what to call with an entry that was lost, or ``None`` if its bucket is gone.
        taken_at: when the place was taken, on the monotonic clock.
    """

    __slots__ = (
        "__weakref__",
        "expires_at",
        "idle_since",
        "leased_at",
        "lost",
        "made",
        "reported_at",
        "resource",
        "site",
        "taken_at",
        "uses",
    )

    resource: T

    # Calls nothing: an interrupt between its lines would leave an entry that is half made, to be reported as lost.
    def __init__(self, lost: Callable[[], Callable[[Entry[T]], None] | None] | None, taken_at: float = 0.0) -> None:
        self.lost = lost
        self.made = False
        self.taken_at = taken_at
        self.expires_at = NEVER
        self.idle_since = 0.0
        self.leased_at = 0.0
        self.site: CallSite = ()
        self.uses = 0
        self.reported_at = 0.0

    def __del__(self) -> None:
        report = self.lost and self.lost()
        if report is not None:
            report(self)

    def held(self) -> str:
        """Return for how long the connection is checked out, and by whom."""
        return f"held for {time.monotonic() - self.leased_at:.1f} s, checked out at {render(self.site)}"
