"""Leases: a socket for one ``with`` block, and the decision at its end whether another may have it."""

from __future__ import annotations

import sys
import time
from threading import get_ident
from types import FrameType, TracebackType
from typing import Generic, Protocol, TypeVar

from app.pools.core.bucket import NOTHING_IDLE, Bucket, Entry
from app.pools.core.holders import GENERATOR, call_site, is_ours, site_above
from app.pools.errors import EndpointBusy, PoolTimeout
from app.pools.zmq_pool.aio import AsyncSocket
from app.pools.zmq_pool.outlet import Outlet
from app.pools.zmq_pool.owner import disown
from app.pools.zmq_pool.sockets import LeanSocket
from app.pools.zmq_pool.trace import ALONE_AT, RECEIVED

_getframe = sys._getframe
_now = time.monotonic
_last_lessee = [0]
_SITE_DEPTH = 10  # of a task's: its thread, which does something else while it waits, cannot tell who called it

T = TypeVar("T")


class Lease(Protocol):
    """What ``pool.socket(config)`` returns: a socket for the time of a ``with`` or ``async with`` block."""

    def __enter__(self) -> LeanSocket: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def detach(self) -> LeanSocket:
        """Take the socket out of the pool, while the lease is out; closing it is the caller's part from now on."""

    async def __aenter__(self) -> AsyncSocket: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PooledLease(Generic[T]):
    """What every kind of lease consists of.

    ``ZMQPool.socket`` makes one and fills it in; there is no ``__init__``, because each lease would pay for its call.
    """

    __slots__ = ("_async_socket", "_bucket", "_entry", "_timeout")

    _bucket: Bucket[T]
    _timeout: float | None
    _entry: Entry[T] | None


class SharedLease(PooledLease[LeanSocket]):
    """A lease of one of several equal sockets: REQ and DEALER, the connections of the other types.

    The socket goes to the next lessee only if this one left without an exception and left it as it was given.
    """

    __slots__ = ()

    def __enter__(self) -> LeanSocket:
        entry = self._entry = self._bucket.checkout(self._timeout)
        return entry.resource

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entry = self._entry
        if entry is None:  # detached
            return
        self._entry = None
        if kind is None and entry.resource.reusable():
            self._bucket.give_back(entry)
        else:
            self._bucket.discard(entry)

    async def __aenter__(self) -> AsyncSocket:
        entry = self._entry = await self._bucket.checkout_async(self._timeout, call_site(_SITE_DEPTH))
        self._async_socket = AsyncSocket(entry.resource)
        return self._async_socket

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._async_socket.release()
        finally:
            self.__exit__(kind, error, trace)

    def detach(self) -> LeanSocket:
        """Take the socket out of the pool, while the lease is out; closing it is the caller's part from now on."""
        entry = self._entry
        if entry is None:
            raise RuntimeError("only a lease that is out has a socket to detach")
        self._entry = None
        watched: AsyncSocket | None = getattr(self, "_async_socket", None)
        if watched is not None:
            watched.release()  # before the caller can close it
        socket = self._bucket.detach(entry)
        disown(socket)
        return socket


class RequestLease(SharedLease):
    """A lease of a REQ that connects, the one that services take before each request.

    ``Bucket.checkout`` and ``give_back`` are written out, but for what happens when one has to wait, and so are the
    calls that they make: on a machine that is busy with the request itself each of them is a hundredth of it.
    It is for buckets without a ``usable``.
    """

    __slots__ = ()

    def __enter__(self) -> LeanSocket:
        bucket = self._bucket
        try:
            entry = bucket._idle.pop()
        except IndexError:
            entry = NOTHING_IDLE
        now = _now()
        if entry.expires_at <= now:
            entry = bucket._checkout_fit(entry, self._timeout)
            now = _now()
        entry.leased_at = now
        entry.uses += 1
        me = get_ident()
        frame: FrameType | None = _getframe(1)
        while frame is not None and is_ours[(code := frame.f_code).co_filename]:
            frame = frame.f_back
        entry.site = site_above(frame) if frame is None or code.co_flags & GENERATOR else (code, frame.f_lasti, me)
        self._entry = entry
        socket = entry.resource
        socket._trace[ALONE_AT], _last_lessee[0] = _last_lessee[0] == me, me
        return socket

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entry = self._entry
        if entry is None:  # detached
            return
        noted = entry.resource._trace
        now = _now()
        bucket = self._bucket
        if kind is not None or noted[0] != RECEIVED or entry.expires_at <= now or bucket._guarded:
            super().__exit__(kind, error, trace)
            return
        self._entry = None
        noted[0] = 0
        bucket._tally.used.append(now - entry.leased_at)
        entry.idle_since = now
        entry.leased_at = 0.0
        bucket._idle.append(entry)
        if bucket._waiters or bucket._guarded:
            bucket._offer(now)


class PrivateLease(SharedLease):
    """A lease of a socket that nobody else ever gets: what a SUB still receives is meant for its lessee alone."""

    __slots__ = ()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entry, self._entry = self._entry, None
        if entry is not None:
            self._bucket.discard(entry)


class KeptLease(SharedLease):
    """A lease of a socket that is not closed while it works, because peers' messages wait in it.

    An exception of the lessee does not spoil it; what the socket went through does.
    """

    __slots__ = ()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(None, None, None)


class PullLease(KeptLease):
    """A lease of one of several PULLs that connect; of the idle ones, one in which messages wait is leased first."""

    __slots__ = ()

    def __enter__(self) -> LeanSocket:
        self._bucket.prefer(_has_messages)
        return super().__enter__()

    async def __aenter__(self) -> AsyncSocket:
        self._bucket.prefer(_has_messages)
        return await super().__aenter__()


def _has_messages(socket: LeanSocket) -> bool:
    return not socket.quiet()


class BoundLease(KeptLease):
    """A lease of the one socket that binds an endpoint. A second lessee is refused, unless told to wait."""

    __slots__ = ()

    def __enter__(self) -> LeanSocket:
        try:
            return super().__enter__()
        except PoolTimeout as timeout:
            raise busy(timeout) from None

    async def __aenter__(self) -> AsyncSocket:
        try:
            return await super().__aenter__()
        except PoolTimeout as timeout:
            raise busy(timeout) from None


class BoundPrivateLease(BoundLease, PrivateLease):
    """A lease of a bound SUB: one at a time, and nothing of it is left for the next lessee."""

    __slots__ = ()

    __exit__ = PrivateLease.__exit__


class OutletLease(PooledLease[Outlet]):
    """A lease of an outlet's socket; what others publish meanwhile is sent after its end.

    One that an interrupt keeps from ending drops its entry, and the bucket has the outlet forsake the lease.
    """

    __slots__ = ("_lessee",)

    _lessee: object
    """Stands for this lease at the outlet, which must not keep the lease itself: one that is lost is to be noticed."""

    def __enter__(self) -> LeanSocket:
        try:
            entry = self._entry = self._bucket.checkout(self._timeout)
        except PoolTimeout as timeout:
            raise self._refusal(timeout) from None
        outlet, self._lessee = entry.resource, object()
        try:
            return outlet.lend(self._lessee, self._patience(outlet))
        except BaseException:
            self._end(healthy=True)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(healthy=kind is None)

    async def __aenter__(self) -> AsyncSocket:
        try:
            entry = self._entry = await self._bucket.checkout_async(self._timeout, call_site(_SITE_DEPTH))
        except PoolTimeout as timeout:
            raise self._refusal(timeout) from None
        outlet, self._lessee = entry.resource, object()
        try:
            self._async_socket = AsyncSocket(await outlet.lend_async(self._lessee, self._patience(outlet)))
        except BaseException:
            self._end(healthy=True)
            raise
        return self._async_socket

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._async_socket.release()
        finally:
            self._end(healthy=kind is None)

    def _end(self, *, healthy: bool) -> None:
        entry, self._entry = self._entry, None
        assert entry is not None
        entry.resource.take_back(self._lessee, healthy=healthy)
        self._bucket.give_back(entry)

    def detach(self) -> LeanSocket:
        """Refuse: the one socket of a PUB or PUSH configuration is everyone's."""
        raise TypeError(f"the socket of {self._bucket.label} is kept for all who publish and cannot be detached")

    def _refusal(self, timeout: PoolTimeout) -> Exception:
        return timeout

    @staticmethod
    def _patience(outlet: Outlet) -> float:
        return max(outlet.config.subscriber_wait, outlet.config.send_timeout)


class BoundOutletLease(OutletLease):
    """A lease of a bound outlet. A second lessee is refused, unless told to wait."""

    __slots__ = ()

    def _refusal(self, timeout: PoolTimeout) -> Exception:
        return busy(timeout)


def busy(timeout: PoolTimeout) -> EndpointBusy | PoolTimeout:
    """Return the error for a bound endpoint that somebody else has leased, if that is why it was not to be had."""
    if timeout.paused or (timeout.total is not None and not timeout.in_use):
        return timeout
    held = f" ({timeout.longest_holder})" if timeout.longest_holder else ""
    return EndpointBusy(
        f"{timeout.key} is leased already{held}, and a bound endpoint has one owner at a time. "
        f"Wait for it with pool.socket(config, timeout=...), or lease another endpoint"
    )
