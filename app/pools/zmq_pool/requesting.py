"""Requests: the part of the ZMQ pool that asks, through a socket leased for each or through one that all share."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace

import zmq

from app.pools.core.allowed import require_seconds
from app.pools.core.managed import ManagedPool
from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import PoolClosed, PoolTimeout, UnexpectedReply
from app.pools.zmq_pool.config import SocketConfig, SocketType
from app.pools.zmq_pool.gate import Gate
from app.pools.zmq_pool.leases import Lease
from app.pools.zmq_pool.multiplexers import Multiplexers
from app.pools.zmq_pool.opening import options_beside
from app.pools.zmq_pool.pipeline import pipeline, seconds_left


class RequestingPool(ManagedPool):
    """What a pool of ZMQ sockets does for those who ask. A subclass leases the sockets and makes what is shared."""

    settings: ZMQPoolSettings
    _gate: Gate
    _multiplexers: Multiplexers

    @abstractmethod
    def socket(self, config: SocketConfig, timeout: float | None = None) -> Lease:
        """Return a lease of a socket."""

    def request(self, config: SocketConfig, body: bytes, timeout: float | None = None) -> bytes:
        """Send ``body`` on a leased REQ and return the reply.

        Args:
            config: a REQ configuration that connects.
            body: the request.
            timeout: seconds for all of it: the checkout, the connection and the reply. Unless given, each
                has its own limit from the settings and the configuration.

        Raises:
            NotSent: no peer was connected in time; sending it again is safe.
            NoReply: the request was sent and no reply came in time; the peer may have executed it.
            PoolTimeout: every socket of this configuration stayed in use.
            UnexpectedReply: the reply has more than one frame.
        """
        expect(config, SocketType.REQ)
        _check_body(body)
        deadline = None if timeout is None else _deadline(timeout)
        with self.socket(config, timeout) as socket:
            if deadline is not None:
                left = _left(deadline)
                socket.settle_timeouts(min(left, config.send_timeout), left)
            socket.send(body)
            if deadline is not None:
                left = _left(deadline)
                socket.settle_timeouts(left, left)
            reply: bytes = socket.recv()
            if socket.frames_left:
                raise UnexpectedReply(config.endpoint)
        return reply

    async def request_async(self, config: SocketConfig, body: bytes, timeout: float | None = None) -> bytes:
        """Send ``body`` and return the reply, without blocking the event loop.

        Requests of one loop share a connection, through which up to 400 are on the way at once, unless the
        configuration says ``multiplexed=False``.

        Args:
            config: a REQ configuration that connects.
            body: the request.
            timeout: seconds for all of it. Unless given, ``config.receive_timeout``, and for as long as the pool is
                paused the limit of a checkout. A connection is waited for ``config.send_timeout`` seconds at most.

        Raises:
            NotSent: no peer was connected in time, or too many requests wait; sending it again is safe.
            PoolTimeout: the pool stayed paused, or every place in use: of sockets that are leased, if not multiplexed,
                or below the cap over all keys.
            NoReply: the request was sent and no reply came in time; the peer may have executed it.
            ConnectionLost: the connection broke meanwhile; ``maybe_executed`` says whether to be careful.
            UnexpectedReply: the reply has more than one frame.
            OutOfDescriptors: the first of a loop needs a connection, and there was no descriptor for it.
        """
        try:
            multiplexed = config.multiplexed
        except AttributeError:
            require_config(config)
            raise
        if timeout is not None:
            require_seconds(timeout)
        if not multiplexed:
            return await self._request_by_lease(config, body, timeout)
        if self._paused:
            timeout = await self._wait_for_resume(config, timeout)
        try:
            multiplexer = self._multiplexers[asyncio.get_running_loop()][config]
        except KeyError:
            expect(config, SocketType.REQ)
            multiplexer, timeout = await self._multiplexers.begin(config, timeout)
        number, reply = multiplexer.request(body, timeout)
        try:
            return await reply
        except asyncio.CancelledError:
            multiplexer.give_up(number)
            raise

    async def _wait_for_resume(self, config: SocketConfig, timeout: float | None) -> float | None:
        """Wait as a lease does while the pool is paused. Returns what is left of ``timeout``."""
        since = time.monotonic()
        passed = await self._gate.passed(self.settings.checkout_timeout if timeout is None else timeout)
        waited = time.monotonic() - since
        if self._closed:
            raise PoolClosed(self.name)
        if not passed:
            waiters = self._gate.waiting
            raise PoolTimeout(
                self.name, config.label, capacity=1, in_use=0, waiters=waiters, waited=waited, paused=True
            )
        return None if timeout is None else max(0.001, timeout - waited)

    async def _request_by_lease(self, config: SocketConfig, body: bytes, timeout: float | None) -> bytes:
        expect(config, SocketType.REQ)
        deadline = None if timeout is None else _deadline(timeout)
        async with self.socket(config, timeout) as socket:
            if deadline is not None:
                left = _left(deadline)
                socket.settle_timeouts(min(left, config.send_timeout), left)
            await socket.send(body)
            if deadline is not None:
                left = _left(deadline)
                socket.settle_timeouts(left, left)
            reply: zmq.Frame = await socket.recv(copy=False)
            if reply.more:
                raise UnexpectedReply(config.endpoint)
        return reply.bytes

    def request_many(self, config: SocketConfig, bodies: Iterable[bytes], timeout: float | None = None) -> list[bytes]:
        """Send many requests through one connection without waiting for each reply in turn.

        Up to 400 are on the way at once; with ``multiplexed=False`` it is one after the other.

        Args:
            config: a REQ configuration that connects.
            bodies: the requests.
            timeout: seconds for all of it. Unless given, only each reply has its limit, that of the
                configuration.

        Returns:
            the replies, in the order of the requests.

        Raises:
            NotSent, NoReply, PoolTimeout, UnexpectedReply: as ``request``. Of the other requests of the call
                any may have been executed.
        """
        expect(config, SocketType.REQ)
        deadline = None if timeout is None else _deadline(timeout)
        if not config.multiplexed:
            return [
                self.request(config, body, None if deadline is None else seconds_left(config, deadline))
                for body in bodies
            ]
        dealing = replace(config, socket_type=SocketType.DEALER, options=options_beside(config))
        with self.socket(dealing, timeout) as socket:
            return pipeline(socket, bodies, deadline)


def expect(config: SocketConfig, kind: SocketType) -> None:
    """Raise ``TypeError`` unless ``config`` is a configuration of sockets of this kind."""
    try:
        fits = config.socket_type is kind
    except AttributeError:
        fits = False
    if not fits:
        require_config(config)
        raise TypeError(f"a {kind.name} configuration is needed here, not {config.label}")


def require_config(config: object) -> None:
    """Raise ``TypeError`` for what is no configuration."""
    if not isinstance(config, SocketConfig):
        raise TypeError(
            f"a SocketConfig is needed, not {type(config).__name__}: {config!r}; SocketConfig(type, endpoint) makes one"
        )


def _deadline(timeout: float) -> float:
    require_seconds(timeout)
    return time.monotonic() + timeout


def _left(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())


def _check_body(body: object) -> None:
    if isinstance(body, str):
        raise TypeError("a request must be bytes, not str; encode it first")
