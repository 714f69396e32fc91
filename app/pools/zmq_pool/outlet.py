"""The one kept socket of a PUB or PUSH configuration: what others than those who send do with it.

The attendant sends what had to be queued, a lessee has the socket for itself for a while, and its pool closes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import sys
import time
from types import FrameType

import zmq

from app.pools.errors import EndpointBusy, OutOfDescriptors, PoolError, PoolTimeout
from app.pools.zmq_pool.backend import NOBLOCK, raw_recv
from app.pools.zmq_pool.config import SocketConfig
from app.pools.zmq_pool.inherited import disinherit
from app.pools.zmq_pool.retries import Retry, connect_anew
from app.pools.zmq_pool.sender import Sender
from app.pools.zmq_pool.sockets import LeanSocket

log = logging.getLogger(__name__)

_PATIENCE = 0.005


class Outlet(Sender):
    """Sends through one socket, opened at the first message, which can also be leased."""

    # The attendant's part

    def descriptor(self) -> int | None:
        """Return the socket's descriptor, unless a lessee has the socket."""
        return self._descriptor if self._lent is None else None

    def attend(self) -> bool:
        """Send what is queued. Returns ``False`` if something has to be tried again."""
        if self.left_open:
            return self._finish()
        while self._queue and self._lent is None and not self._closed and not self._lock.locked():
            with self._lock:
                try:
                    if not self._closed and not self._drain():
                        return False
                except (OutOfDescriptors, PoolTimeout) as error:  # others may make room, and nobody would say so
                    if not self._complained:
                        self._complained = True
                        log.warning("%s. %d messages wait for it", error, len(self._queue))
                    return False
        return True

    def sweep(self) -> None:
        """Read the subscriptions that came and went: an XPUB keeps them all until they are read."""
        if self._lent is None and not self._lock.locked():
            with self._lock, contextlib.suppress(zmq.Again):
                while self._lent is None and self._socket is not None and self._socket.type == zmq.XPUB:
                    raw_recv(self._socket, NOBLOCK)
        if self._queue:
            self._attendant.nudge(self)

    def connect_anew(self, retry: Retry) -> None:
        """Connect again, which libzmq has given up, or put it off while somebody has the socket."""
        if self._lent is not None or self._lock.locked():
            retry.put_off()
            return
        with self._lock:
            if self._lent is None and self._socket is not None:
                retry.connect(self._socket, self.config.endpoint)

    def rejoin(self) -> None:
        """Connect to whoever binds an ``inproc`` endpoint next."""
        with self._lock:
            self._outdated = self._lent is not None
            if self._socket is not None and not self._outdated:
                connect_anew(self._socket, self.config.endpoint)

    # Leases

    def lend(self, lessee: object, seconds: float) -> LeanSocket:
        """Return the socket for exclusive use until ``take_back``, after what is queued was sent.

        Args:
            lessee: who leases it. Leases exclude each other before they come here.
            seconds: how long to wait for the first subscriber and for what is queued.

        Raises:
            EndpointBusy: the endpoint to bind is taken, or this is a signal's handler that has interrupted a send.
            PoolClosed: the pool is stopped.
        """
        if self._is_interrupted():
            raise EndpointBusy(
                f"{self.config.label} is being sent through by the very call that a signal's handler has interrupted, "
                f"so the handler cannot lease it; lease it after the handler, or in a thread"
            )
        deadline = time.monotonic() + seconds
        while True:
            with self._lock:
                socket = self._lend_if_ready(lessee, deadline)
                if socket is not None:
                    return socket
                self._wait_a_moment()

    async def lend_async(self, lessee: object, seconds: float) -> LeanSocket:
        """Do what ``lend`` does without blocking the event loop."""
        deadline = time.monotonic() + seconds
        while True:
            with self._lock:  # others hold it for as long as sending without waiting takes
                socket = self._lend_if_ready(lessee, deadline)
            if socket is not None:
                return socket
            await asyncio.sleep(_PATIENCE)

    def _lend_if_ready(self, lessee: object, deadline: float) -> LeanSocket | None:
        if not self._drain() and time.monotonic() < deadline:
            return None
        if self._socket is not None:
            self._ready = None
            self._lent = lessee
        return self._socket

    def _wait_a_moment(self) -> None:
        """Wait, with the lock held, until sending may get on."""
        if self._socket is None:
            time.sleep(_PATIENCE)
        else:
            with contextlib.suppress(zmq.ContextTerminated):  # which the next send says as well
                self._socket.poll(int(1000 * _PATIENCE), zmq.POLLIN if self._holding_until else zmq.POLLOUT)

    def take_back(self, lessee: object, *, healthy: bool) -> None:
        """End the lease of ``lessee``, if it is that one which is out.

        A socket that is not healthy is closed, and the next message opens another.
        """
        if self._lent is lessee:
            if self._is_interrupted():
                self._regain(healthy=healthy)
            else:
                with self._lock:
                    self._regain(healthy=healthy)
        if self._queue:  # also beside a lease that could not begin: who sent meanwhile left it to that one
            self._attendant.nudge(self)

    def _regain(self, *, healthy: bool) -> None:
        """End the lease. Without the lock as well, for nobody but the lessee has touched the socket."""
        socket = self._socket
        if socket is not None and (self._closed or self._outdated or not (socket.reusable() and healthy)):
            self._close_socket()
        self._lent = None

    def forsake(self) -> None:
        """End a lease that was lost. Its socket is left to whoever may still use it, and closes with them.

        Takes no lock: while the socket is lent, nobody else touches it.
        """
        if self._lent is not None:
            self._freed_at = time.monotonic()
            self._socket = self._descriptor = None
            self._lent = None
        if self._queue:
            self._attendant.nudge(self)

    # Life

    def close(self, deadline: float) -> int:
        """Send what is queued, at most until ``deadline`` (monotonic seconds), and close the socket.

        In a signal's handler that has interrupted a send, the socket is closed after that one, which sends what it can.

        Returns:
            how many messages had to be dropped.
        """
        if self._is_interrupted():
            self._close_later()
            return 0
        try:
            self._send_until(deadline)
        except (PoolError, zmq.ZMQError) as error:
            log.warning("%s: what is queued cannot be sent: %s", self.config.label, error)
        with self._lock:
            dropped = self._end()
        self._attendant.unwatch(self)
        self._backlog.call_waiting()
        return dropped

    def _end(self) -> int:
        """Close the socket and drop what is queued, with the lock held. Returns how many messages that were."""
        self._closed = True
        if self._lent is None:  # else the lessee closes it at the return
            self._close_socket()
        dropped = len(self._queue)
        for _ in range(dropped):  # and no more: one that is appended meanwhile is refused, not lost unsaid
            self._queue.popleft()
        return dropped

    def _is_interrupted(self) -> bool:
        """Say whether the caller is a signal's handler that has interrupted a call of this outlet, in this thread."""
        if not self._lock.locked():
            return False
        frame: FrameType | None = sys._getframe(2)  # past the call that asks
        while frame is not None:
            if frame.f_code in _CALLS and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        return False

    def _close_later(self) -> None:
        """Have the attendant close the socket, as soon as the call that has it is over."""
        self._closed = self.left_open = True
        self._ready = None
        self._attendant.nudge(self)
        self._backlog.call_waiting()

    def _finish(self) -> bool:
        """Close what was left open. Returns ``False`` while a call still has it."""
        if self._lock.locked():
            return False
        with self._lock:
            dropped, self.left_open = self._end(), False
        report_dropped(self.config, dropped)
        return True

    def _send_until(self, deadline: float) -> None:
        while self._queue and self._lent is None:
            with self._lock:
                if not self._drain():
                    if time.monotonic() >= deadline:
                        return
                    self._wait_a_moment()

    def forget_after_fork(self) -> None:
        """Start empty in a child process: socket and queue are the parent's, which sends what it has queued."""
        if self._socket is not None:
            disinherit(self._socket)
        self._reset()

    @property
    def is_open(self) -> bool:
        """Whether the socket is open."""
        return self._socket is not None

    def figures(self) -> dict[str, int]:
        """Return what went through."""
        return {"sent": self._sent, "queued": len(self._queue), "refused": self._refused, "overruns": self._overruns}


_CALLS = frozenset(
    function.__code__ for kind in (Sender, Outlet) for function in vars(kind).values() if inspect.isfunction(function)
)
"""What an interrupted call of an outlet is found by."""


def report_dropped(config: SocketConfig, dropped: int) -> None:
    """Log how many messages were not sent, if any."""
    if dropped:
        log.warning("%s: %d messages could not be sent before the pool stopped", config.label, dropped)
