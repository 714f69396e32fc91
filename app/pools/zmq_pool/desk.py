"""The desk of one configuration: the bucket of its sockets, and the kind of lease that its type calls for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import zmq

from app.pools.core.bucket import NEVER, Bucket, Entry, Limits
from app.pools.core.budget import Budget
from app.pools.core.kept import KeptPlace
from app.pools.core.settings import ZMQPoolSettings
from app.pools.zmq_pool.asking import DealerSocket, RequestSocket
from app.pools.zmq_pool.attempts import PAUSE, Attempt
from app.pools.zmq_pool.attendant import attendant
from app.pools.zmq_pool.config import ASKING, SENDING, SocketConfig, SocketType
from app.pools.zmq_pool.context import shared_context
from app.pools.zmq_pool.curve import CurveServer
from app.pools.zmq_pool.inherited import disinherit
from app.pools.zmq_pool.leases import (
    BoundLease,
    BoundOutletLease,
    BoundPrivateLease,
    OutletLease,
    PrivateLease,
    PullLease,
    RequestLease,
    SharedLease,
)
from app.pools.zmq_pool.opening import open_socket
from app.pools.zmq_pool.outlet import Outlet, report_dropped
from app.pools.zmq_pool.owner import claim, disown
from app.pools.zmq_pool.reachability import Reachability
from app.pools.zmq_pool.rebinding import rebinding
from app.pools.zmq_pool.sentinel import Sentinels
from app.pools.zmq_pool.sockets import LeanSocket
from app.pools.zmq_pool.witnesses import Witnesses

log = logging.getLogger(__name__)

_FAIR_AFTER = 0.05
"""Seconds after which a waiting thread is handed a socket. Each one that is handed over costs two switches between
threads, which are long beside a request: with 32 threads on 8 sockets 0.01 cost a sixth of all requests."""


class Desk:
    """Hands out the sockets of one configuration.

    Args:
        config: the configuration.
        settings: the pool's settings.
        context: returns the context to open sockets on.
        budget: the cap over all configurations.
        vacate: has other configurations give up the endpoint that this one is to bind, if they do not use it.
        sentinels: watch the endpoints.
    """

    def __init__(
        self,
        config: SocketConfig,
        settings: ZMQPoolSettings,
        context: Callable[[], zmq.Context[Any]],
        budget: Budget,
        vacate: Callable[[SocketConfig], bool],
        sentinels: Sentinels,
    ) -> None:
        self.config = config
        self._context = context
        self._vacate = vacate
        self._freed_at = -NEVER
        self._outlets_attempt: Attempt | None = None
        self._check_owner = settings.check_owner and config.socket_type not in SENDING  # an outlet is everyone's
        self._busy_poll = settings.busy_poll
        self.outlet: Outlet | None = None
        self.lease: type[OutletLease | SharedLease]
        self._sentinels = sentinels
        self._seen: Reachability | None = None  # by the sentinel
        self._max_idle_time = settings.max_idle_time
        self._seen_uses = 0
        self._deserted_since = NEVER
        limits = _limits(config, settings)
        self._patience = settings.checkout_timeout
        if config.socket_type in SENDING:
            outlet = self.outlet = Outlet(config, self._open_for_outlet, attendant)
            self._witnesses = Witnesses(config, outlet.connect_anew)
            self._outlets_place = KeptPlace(budget)
            self.bucket: Bucket[Any] = Bucket(
                "zmq",
                config.label,
                limits,
                create=lambda: outlet,
                destroy=lambda _: None,
                forsake=Outlet.forsake,
            )
            self.lease = BoundOutletLease if config.bind else OutletLease
        else:
            self._witnesses = Witnesses(config)
            self.bucket = Bucket(
                "zmq",
                config.label,
                limits,
                create=self._open,
                create_async=self._open_async,
                destroy=self._close,
                usable=_usable(config, check_owner=self._check_owner),
                budget=budget,
                forsake=disown,  # it closes when nothing refers to it
            )
            self.lease = _lease_for(config, check_owner=self._check_owner)

        rebinding.join(config, self)

    def rejoin(self) -> None:
        """Leave the socket that has bound an ``inproc`` endpoint, and is closed, for whoever binds it next."""
        if self.outlet is not None:
            self.outlet.rejoin()
        elif self.config.socket_type in ASKING:  # in the others there may be messages left
            self.bucket.clear()

    def _open(self) -> LeanSocket:
        attempt = self._attempt()
        while (socket := attempt.make(self._open_now, self._freed_at)) is None:
            time.sleep(PAUSE)
        return socket

    async def _open_async(self) -> LeanSocket:
        attempt = self._attempt()
        while (socket := attempt.make(self._open_now, self._freed_at)) is None:  # noqa: ASYNC110 - the event is libzmq's
            await asyncio.sleep(PAUSE)
        return socket

    def _open_for_outlet(self, freed_at: float) -> LeanSocket | None:
        """Try once to open the socket of the outlet, which has its own ways to wait for the next try."""
        attempt = self._outlets_attempt
        if attempt is None or attempt.abandoned:
            attempt = self._outlets_attempt = self._attempt()
        socket = attempt.make(partial(self._open_in_place, attempt), freed_at)
        if socket is not None:
            self._outlets_attempt = None
        return socket

    def _open_in_place(self, attempt: Attempt) -> LeanSocket | None:
        """Open the outlet's socket in its place below the cap over all keys, which is kept from the first time on."""
        if self._outlets_place.taken():
            return self._open_now()
        if attempt.seconds >= self._patience:
            raise self._outlets_place.timed_out("zmq", self.config.label, attempt.seconds)
        return None

    def _attempt(self) -> Attempt:
        return Attempt(self.config.label, vacate=lambda: self._vacate(self.config))

    def _open_now(self) -> LeanSocket:
        context = self._context()
        if isinstance(self.config.curve, CurveServer):
            shared_context.authenticator().serve(self.config.curve)
        self.watch()
        socket = open_socket(context, self.config, check_owner=self._check_owner, prepare=self._witnesses.call)
        socket.__dict__.update(diagnose=self.trouble, mourn=self.loss)
        if isinstance(socket, RequestSocket):
            socket.poll_busily(self._busy_poll)
        return socket

    def vacate(self) -> bool:
        """Close the socket that is kept bound, unless it is leased. Returns whether there was one."""
        figures = self.bucket.stats()
        if figures["active"] or not figures["idle"] or self.outlet is not None:
            return False
        self.bucket.clear()
        return True

    def watch(self) -> None:
        """Begin to watch the endpoint, if it can be watched."""
        if self._seen is None:
            self._sentinels.join(self.config, self)

    @property
    def needs_watch(self) -> bool:
        """Whether anybody uses the configuration."""
        return not self.bucket.deserted

    def see(self, seen: Reachability | None) -> None:
        """Take what the endpoint's sentinel sees, or that there is none any more."""
        self._seen = seen

    @property
    def reachability(self) -> Reachability | None:
        """What is known of the endpoint, while it is watched."""
        return self._seen or self._witnesses.reachability

    def trouble(self) -> str:
        """Return why the endpoint is known to be down, or nothing."""
        seen = self.reachability
        return "" if seen is None else seen.trouble()

    def loss(self, since: float = -NEVER) -> str:
        """Return why a reply that is due cannot come any more, if that is known to have happened since then."""
        seen = self.reachability
        return "" if seen is None else seen.loss(since)

    def _close(self, socket: LeanSocket) -> None:
        unread = socket.unread() if self.config.socket_type is SocketType.PULL else 0
        socket.close()
        self._freed_at = time.monotonic()
        if unread:
            log.warning(
                "%s: at least %d received messages that nobody had read were lost with the socket. "
                "Before a stop, end those who push and read what is left",
                self.config.label,
                unread,
            )

    def drain(self, deadline: float) -> list[str]:
        """Send what is queued and wait for the leases until ``deadline``; return who still holds one."""
        holders = self.bucket.drain(deadline - time.monotonic())
        if self.outlet is not None:
            report_dropped(self.config, self.outlet.close(deadline))
            self._outlets_place.give_up()
        return holders

    def sweep(self) -> None:
        """Do the housekeeping of this configuration."""
        self.bucket.sweep()
        if self.lease is PullLease:
            self.bucket.close_surplus(self._max_idle_time, LeanSocket.quiet)
        if self.outlet is not None:
            self.outlet.sweep()
        if self.bucket.uses != self._seen_uses or not self.bucket.deserted:
            self._seen_uses = self.bucket.uses
            self._deserted_since = NEVER
        elif self._deserted_since == NEVER:
            self._deserted_since = time.monotonic()

    @property
    def forgettable(self) -> bool:
        """Whether nobody has used the configuration for the idle time, and nothing of it is left."""
        return self.outlet is None and time.monotonic() - self._deserted_since >= self._max_idle_time

    def unwatch(self) -> None:
        """Watch the endpoint no longer, unless somebody uses it by now."""
        if self._seen is not None:
            self._sentinels.leave(self.config, self)

    def figures(self) -> dict[str, Any]:
        """Return the statistics of this configuration."""
        figures = self.bucket.stats()
        if self.outlet is not None:
            figures.update(self.outlet.figures())
            figures["total"] = int(self.outlet.is_open)
        if (seen := self.reachability) is not None:
            figures.update(seen.figures())
        if isinstance(self.config.curve, CurveServer):
            figures.update(shared_context.admissions(self.config.curve))
        return figures

    def forget_after_fork(self) -> None:
        """Leave the parent's sockets alone."""
        inherited = self.bucket.forget_after_fork()
        if self.outlet is not None:
            self.outlet.forget_after_fork()
            return
        for socket in inherited:
            disinherit(socket)


def _lease_for(config: SocketConfig, *, check_owner: bool) -> type[SharedLease]:
    """Return the kind of lease that a type calls for (docs/zmq.md has the table and its reasons)."""
    kind = config.socket_type
    if config.bind:
        return BoundPrivateLease if kind is SocketType.SUB else BoundLease
    if kind is SocketType.REQ and not check_owner:
        return RequestLease
    if kind in ASKING:
        return SharedLease
    if kind is SocketType.PULL:
        return PullLease
    return PrivateLease


def _usable(config: SocketConfig, *, check_owner: bool) -> Callable[[Entry[LeanSocket], float], bool] | None:
    """Return what must be true of an idle socket, and done, before it is leased again."""
    if config.socket_type is not SocketType.DEALER or config.bind:
        return claim if check_owner else None

    def quiet(entry: Entry[LeanSocket], now: float) -> bool:
        socket = entry.resource
        assert isinstance(socket, DealerSocket)
        return socket.quiet() and (not check_owner or claim(entry, now))

    return quiet


def _limits(config: SocketConfig, settings: ZMQPoolSettings) -> Limits:
    one = config.bind or config.socket_type in SENDING
    # Closing one of the others would lose the messages that wait in it, so none is closed for being old or idle alone.
    replaceable = config.socket_type in ASKING and not config.bind
    return Limits(
        capacity=1 if one else config.max_connections or settings.max_connections,
        checkout_timeout=0.0 if config.bind else settings.checkout_timeout,  # or a second lessee would find out late
        paused_timeout=settings.checkout_timeout,
        setting="" if one else "max_connections of its SocketConfig" if config.max_connections else None,
        idle_timeout=settings.max_idle_time if replaceable else NEVER,
        max_lifetime=settings.max_lifetime or NEVER if replaceable else NEVER,
        fair_after=_FAIR_AFTER,
        leak_threshold=_leak_threshold(config, settings) or NEVER,
    )


def _leak_threshold(config: SocketConfig, settings: ZMQPoolSettings) -> float:
    if config.leak_threshold is not None:
        return config.leak_threshold
    # Whoever receives what comes unasked holds its socket for as long as it runs, which is no leak.
    serves = config.socket_type not in SENDING and (config.bind or config.socket_type not in ASKING)
    return 0.0 if serves else settings.leak_threshold
