"""A lease: an entry of a bucket for the time of one ``with`` block."""

from __future__ import annotations

import sys
import time
import warnings
from threading import get_ident
from types import FrameType, TracebackType
from typing import ClassVar, Generic, Protocol, TypeVar

from app.pools.core.bucket import Bucket, Entry
from app.pools.core.holders import is_ours, render

_getframe = sys._getframe
_now = time.monotonic


class Reusable(Protocol):
    """A connection that knows what its lessee did to it."""

    def reusable(self) -> bool:
        """Say whether the lessee left the connection as it was given, and make it as new."""


R = TypeVar("R", bound=Reusable)


class BucketLease(Generic[R]):
    """A lease of one of several equal connections.

    The connection goes to the next lessee only if this one left without an exception and left it as it was given.

    ``Bucket.checkout`` and ``Bucket.give_back`` are written out here, but for what happens when one has to wait.
    With many threads the interpreter's lock is what they wait for, and each call saved shortens every turn.

    Args:
        bucket: whose connections are leased.
        timeout: seconds to wait for a free one, the bucket's own limit unless given.
    """

    __slots__ = ("_bucket", "_entry", "_timeout")

    _entry: Entry[R] | None
    _how_to_end: ClassVar[str] = "Use `with`"
    """What the warning about a lease that was never ended says one should do."""

    def __init__(self, bucket: Bucket[R], timeout: float | None) -> None:
        self._bucket = bucket
        self._timeout = timeout
        self._entry = None

    def __enter__(self) -> R:
        bucket = self._bucket
        try:
            entry = bucket._idle.pop()
        except IndexError:
            entry = bucket._checkout_slowly(self._timeout)
        now = _now()
        if entry.expires_at <= now or bucket._usable is not None:
            entry = bucket._checkout_fit(entry, self._timeout)
            now = _now()
        entry.leased_at = now
        entry.uses += 1
        frame: FrameType | None = _getframe(1)
        while frame is not None and is_ours[frame.f_code.co_filename]:
            frame = frame.f_back
        entry.site = () if frame is None else (frame.f_code, frame.f_lasti, get_ident())
        self._entry = entry
        return entry.resource

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entry = self._entry
        if entry is None:  # detached
            return
        self._entry = None
        bucket = self._bucket
        if kind is not None or not entry.resource.reusable():
            bucket.discard(entry)
            return
        now = _now()
        if entry.expires_at <= now or bucket._waiters or bucket._guarded:
            bucket.give_back(entry)
            return
        bucket._used.append(now - entry.leased_at)
        entry.idle_since = now
        entry.leased_at = 0.0
        bucket._idle.append(entry)
        if bucket._waiters or bucket._guarded:  # they came in between
            bucket.serve()

    def __del__(self) -> None:
        entry = self._entry
        if entry is not None:
            # Whoever has the connection may still use it: it is given up, and closes when nothing refers to it.
            self.detach()
            warnings.warn(
                f"a lease of {self._bucket.label} was never ended; it was checked out at {render(entry.site)}. "
                f"{self._how_to_end}",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def detach(self) -> R:
        """Take the connection out of the pool, while the lease is out; closing it is the caller's part from now on."""
        entry = self._entry
        if entry is None:
            raise RuntimeError("only a lease that is out has a connection to detach")
        self._entry = None
        return self._bucket.detach(entry)
