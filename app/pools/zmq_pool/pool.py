"""``ZMQPool``: leased sockets, requests, and publishing, over one context."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import zmq

from app.pools.core import forks
from app.pools.core.allowed import require_seconds
from app.pools.core.bucket import Bucket
from app.pools.core.budget import Budget
from app.pools.core.defaults import DefaultPool
from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import PoolClosed
from app.pools.pool import Health
from app.pools.zmq_pool.backlog import Frames
from app.pools.zmq_pool.config import FOREVER, SocketConfig, SocketType
from app.pools.zmq_pool.context import shared_context
from app.pools.zmq_pool.desk import Desk
from app.pools.zmq_pool.desks import Desks
from app.pools.zmq_pool.exits import stop_at_exit
from app.pools.zmq_pool.gate import Gate
from app.pools.zmq_pool.leases import Lease, OutletLease, SharedLease
from app.pools.zmq_pool.multiplexer import Multiplexer
from app.pools.zmq_pool.multiplexers import Multiplexers, end_all
from app.pools.zmq_pool.opening import open_dealer
from app.pools.zmq_pool.outlet import Outlet
from app.pools.zmq_pool.rebinding import rebinding
from app.pools.zmq_pool.requesting import RequestingPool, expect, require_config
from app.pools.zmq_pool.sentinel import Sentinels

_KNOWN_AT_MOST = 1024
_WORST_FIRST = [False, True, None]


class ZMQHealth(Health):
    """What the ZMQ pool's ``health()`` returns: ``endpoints`` says which are up, ``None`` while not known."""

    endpoints: dict[str, bool | None]


class ZMQPool(RequestingPool):
    """Sockets by configuration, leased for one ``with`` block each, over the process's one ``zmq.Context``.

    The pool starts at its first use. Threads and event loops share it, and its sockets.

    Args:
        settings: caps and times; from the environment, ``.env`` and ``poolwire.toml`` unless given.
    """

    name = "zmq"

    def __init__(self, settings: ZMQPoolSettings | None = None) -> None:
        self.settings = settings or ZMQPoolSettings()
        super().__init__(sweep_interval=self.settings.health_check_interval)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._desks = Desks(self._make_desk)
        # What leasing and publishing call, looked up once: on a local socket each step to it shows. Leasing has it
        # by the configuration's identity, because its hash is a call as well; the configuration is kept beside it,
        # so that no other has that identity.
        self._known: dict[int, tuple[type[OutletLease | SharedLease], Bucket[Any], SocketConfig]] = {}
        self._publish: dict[SocketConfig, Callable[[Frames], None]] = {}
        self._push: dict[SocketConfig, Callable[[Frames], None]] = {}
        self._ending: list[
            Callable[[float], list[str]]
        ] = []  # what a stop has to do, and is left to do if it is broken off
        self._gate = Gate(lambda: self._paused)
        self._share_places()
        self._sentinels = Sentinels(lambda: self.context)

    def _share_places(self) -> None:
        """Make the cap over all keys, and what takes its places beside the desks."""
        settings = self.settings
        self._budget = Budget(settings.max_total_connections, setting="ZMQ_POOL_MAX_TOTAL_CONNECTIONS")
        self._multiplexers = Multiplexers(
            self._make_multiplexer, self._serving, self._budget, settings.checkout_timeout
        )

    # Leases

    def socket(self, config: SocketConfig, timeout: float | None = None) -> Lease:
        """Return a lease, for ``with`` (a ``zmq.Socket``) or ``async with`` (its methods are awaited).

        Args:
            config: which socket.
            timeout: seconds to wait for a free one, ``ZMQ_POOL_CHECKOUT_TIMEOUT`` unless given. A bound
                endpoint is not waited for unless a timeout is given, or the pool is paused.

        Raises:
            PoolTimeout: (on entering) every socket of this configuration stayed in use, or the pool paused.
            EndpointBusy: (on entering) the endpoint to bind has an owner already.
            PoolClosed: the pool is stopped.
        """
        try:
            kind, bucket, _ = self._known[id(config)]
        except KeyError:
            kind, bucket = self._get_to_know(config)
        if timeout is not None:
            require_seconds(timeout)
        lease = kind()
        lease._bucket = bucket
        lease._timeout = timeout
        lease._entry = None
        return lease

    @property
    def context(self) -> zmq.Context[zmq.Socket[bytes]]:
        """The process's context, for what the pool does not cover; the pool terminates it when it stops.

        Raises:
            OutOfDescriptors: it is still to be made, and there are too few descriptors for it.
        """
        context = self._context
        if context is None:
            with self._lock:
                self._ensure_running()  # under the lock: a share taken after a stop has begun, it would not give up
                context = self._context
                if context is None:
                    context = self._context = shared_context.take()
                    stop_at_exit(self)
        return context

    # Publishing

    def publish(self, config: SocketConfig, *frames: bytes) -> None:
        """Publish a message on the configuration's one PUB, from any thread; ``publish_async`` is for coroutines.

        Does not wait, unless ``config.backlog`` messages are queued already; then for ``config.send_timeout``
        seconds at most, after which subscribers that are too slow miss messages. Until the first subscriber is
        there, at most ``config.subscriber_wait`` seconds, messages are kept; after that PUB drops what nobody
        has subscribed to. Leases nothing, so it goes on while the pool is paused.

        Raises:
            EndpointBusy: the endpoint to bind is taken. The message is not sent later.
            OutOfDescriptors: there have been none for the socket for a while. The message is not sent later.
            PoolTimeout: likewise, all places below the cap over all keys have been taken.
            PoolClosed: the pool is stopped.
        """
        known = self._publish  # taken first: what a stop closes meanwhile must not be known to the next start
        try:
            send = known[config]
        except KeyError:
            send = known[config] = self._outlet(config, SocketType.PUB).send
        send(frames)

    def push(self, config: SocketConfig, *frames: bytes) -> None:
        """Push a message to one of the peers through the configuration's one PUSH, like ``publish``.

        Messages are kept, up to ``config.backlog``, while no peer is connected or all their queues are full.

        Raises:
            NotSent: the queue stayed full for ``config.send_timeout`` seconds. The message is not sent later.
            EndpointBusy, OutOfDescriptors, PoolTimeout, PoolClosed: as ``publish``.
        """
        known = self._push  # taken first: what a stop closes meanwhile must not be known to the next start
        try:
            send = known[config]
        except KeyError:
            send = known[config] = self._outlet(config, SocketType.PUSH).send
        send(frames)

    async def publish_async(self, config: SocketConfig, *frames: bytes) -> None:
        """Do what ``publish`` does without blocking the event loop where the queue is full."""
        await self._outlet(config, SocketType.PUB).send_async(frames)

    async def push_async(self, config: SocketConfig, *frames: bytes) -> None:
        """Do what ``push`` does without blocking the event loop where the queue is full."""
        await self._outlet(config, SocketType.PUSH).send_async(frames)

    def _outlet(self, config: SocketConfig, kind: SocketType) -> Outlet:
        expect(config, kind)
        desk = self._desks.get(config) or self._open_desk(config)
        assert desk.outlet is not None
        return desk.outlet

    # What it does now

    def health(self) -> ZMQHealth:
        """Say which endpoints are up. Nothing is sent to them; the connections that there are tell."""
        health = super().health()
        endpoints: dict[str, bool | None] = {}
        for desk in self._desks.open_ones():
            seen, endpoint = desk.reachability, desk.config.endpoint
            if seen is None:
                continue
            # Of several configurations that lead there, one may be refused where another is not.
            endpoints[endpoint] = min(endpoints.get(endpoint), seen.up, key=_WORST_FIRST.index)
            if seen.up is False:
                reason = f"{endpoint} is down: {seen.last_error}"
                if reason not in health["reasons"]:
                    health["reasons"].append(reason)
        return {"healthy": not health["reasons"], "reasons": health["reasons"], "endpoints": endpoints}

    # Keys

    def _open_desk(self, config: SocketConfig) -> Desk:
        require_config(config)
        with self._lock:
            self._ensure_running()  # under the lock: what comes after a stop has begun, it would not close
            return self._desks.open(config)

    def _make_desk(self, config: SocketConfig) -> Desk:
        desk = Desk(config, self.settings, lambda: self.context, self._budget, self._desks.vacate, self._sentinels)
        self._hold_back(desk.bucket)
        return desk

    def _make_multiplexer(
        self, loop: asyncio.AbstractEventLoop, config: SocketConfig, closed: Callable[[], None]
    ) -> Multiplexer:
        """Make one, with the lock held."""
        context = self.context
        desk = self._open_desk(config)
        desk.watch()
        made = Multiplexer(
            loop,
            config,
            lambda events: open_dealer(context, config, events),
            desk.trouble,
            closed,
            desk.loss,
            self.settings.max_lifetime or FOREVER,
        )
        rebinding.join(config, made)
        return made

    def _get_to_know(self, config: SocketConfig) -> tuple[type[OutletLease | SharedLease], Bucket[Any]]:
        with self._lock:  # so that nothing is known that is forgotten at the same time
            desk = self._open_desk(config)
            if len(self._known) >= _KNOWN_AT_MOST:  # somebody makes an equal one for each call
                self._known.clear()
            self._known[id(config)] = desk.lease, desk.bucket, config
        return desk.lease, desk.bucket

    def _forget_deserted(self) -> None:
        with self._lock:
            deserted = self._desks.forget_deserted({multiplexer.config for multiplexer in self._multiplexers.all()})
            buckets = {id(desk.bucket) for desk in deserted}
            if buckets:
                self._known = {key: known for key, known in self._known.items() if id(known[1]) not in buckets}
        for desk in deserted:
            desk.unwatch()

    def _forget_keys(self) -> None:
        self._desks.clear()
        self._known, self._publish, self._push = {}, {}, {}

    def _all_desks(self) -> list[Desk]:
        with self._lock:
            return self._desks.all()

    # Life

    @contextlib.contextmanager
    def _serving(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise PoolClosed(self.name)
            yield

    def start(self) -> None:
        """Make ready to serve, also after a ``stop``; does nothing if the pool runs."""
        super().start()
        self.context  # noqa: B018 - made now, so that what keeps it from being made shows at the start

    def resume(self) -> None:
        """Hand out again, first to those who waited."""
        super().resume()
        self._gate.open()

    def _buckets(self) -> Iterable[Bucket[Any]]:
        return [desk.bucket for desk in self._all_desks()]

    def _refuse(self) -> None:
        for desk in self._all_desks():
            desk.bucket.refuse()
        self._gate.open()

    def _drain(self, deadline: float) -> list[str]:
        with self._lock:
            self._ending += [desk.drain for desk in self._all_desks()]
            self._ending.append(partial(end_all, self._multiplexers.take_all()))
            outlets = [desk.outlet for desk in self._all_desks() if desk.outlet is not None]
            self._forget_keys()
        holders: list[str] = []
        while self._ending:
            end_one = self._ending[0]
            holders += end_one(deadline)
            if end_one in self._ending:  # a stop in a signal's handler may have gone on with this one
                self._ending.remove(end_one)
        left_open = not self._sentinels.dismiss()
        with self._lock:
            self._sentinels = Sentinels(lambda: self.context)
            context, self._context = self._context, None
        if context is not None:
            shared_context.give(deadline, left_open=left_open or any(outlet.left_open for outlet in outlets))
        return holders

    def _figures(self) -> Iterable[tuple[str, dict[str, Any]]]:
        with self._lock:
            desks, multiplexers = self._desks.used(), list(self._multiplexers.all())
        yield from ((desk.config.label, desk.figures()) for desk in desks)
        yield from ((f"{each.config.label} (asyncio)", each.figures()) for each in multiplexers)

    def sweep(self) -> None:
        """Close sockets that were idle too long or are too old, and report leases held too long."""
        for desk in self._all_desks():
            desk.sweep()
        with self._lock:
            self._multiplexers.close_those_of_closed_loops()
            self._multiplexers.close_idle(self.settings.max_idle_time)
            self._multiplexers.renew_old()
        self._forget_deserted()

    def forget_after_fork(self) -> None:
        """Start empty in a child process: sockets and context are the parent's."""
        super().forget_after_fork()
        for desk in self._desks.all():
            desk.forget_after_fork()
        self._sentinels.forget_after_fork()
        forks.bury(*self._desks.all(), *self._multiplexers.take_all())
        self._forget_keys()
        self._ending = []
        self._context = None
        self._gate = Gate(lambda: self._paused)
        self._share_places()


_default = DefaultPool(ZMQPool)


def get_zmq_pool() -> ZMQPool:
    """Return the process's default pool: the same one to every caller, and a new one after it was stopped."""
    return _default.get()
