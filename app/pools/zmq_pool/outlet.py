"""The one kept socket of a PUB or PUSH configuration, through which many threads send.

Flat combining: who sends appends the message to a queue; whoever then gets the lock sends all that is queued,
without waiting. Nobody blocks for a lock, nobody's messages change their order, and there is no thread in
between. What cannot be sent now (no subscriber yet, no peer, a full queue) stays queued and is sent by the
attendant, as soon as the socket's descriptor or the next tick says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

import zmq

from app.pools.errors import NotSent, PoolClosed
from app.pools.zmq_pool.attendant import Attendant
from app.pools.zmq_pool.backend import NOBLOCK, NOBLOCK_SNDMORE, raw_recv, raw_send, raw_set
from app.pools.zmq_pool.config import SocketConfig, SocketType
from app.pools.zmq_pool.sockets import LeanSocket

_PATIENCE_MS = 5
_TURN = 0.05

Frames = tuple[bytes, ...]


class Outlet:
    """Sends through one socket, opened at the first message.

    Args:
        config: a PUB or PUSH configuration.
        open_socket: opens the socket; called once, under the outlet's lock.
        attendant: sends later what cannot be sent at once.
    """

    def __init__(self, config: SocketConfig, open_socket: Callable[[], LeanSocket], attendant: Attendant) -> None:
        self.config = config
        self._open_socket = open_socket
        self._attendant = attendant
        self._backlog = config.backlog
        self._queue: deque[Frames] = deque()
        self._lock = threading.Lock()
        self._room = threading.Event()
        self._socket: LeanSocket | None = None
        self._holding_until = 0.0
        self._closed = False
        self._lent = False
        self._sent = 0
        self._refused = 0
        self._overruns = 0

    def send(self, frames: Frames) -> None:
        """Send a message, or queue it in its place; in the order of the calls of each thread.

        A full queue is waited for. After ``config.send_timeout`` seconds PUB goes on without the subscribers
        that are too slow, as PUB does by nature; PUSH, which loses nothing, refuses the message.

        Raises:
            NotSent: the queue of a PUSH stayed full.
            PoolClosed: the pool is stopped.
        """
        if not frames:  # refused here, too: it would fail the call of whoever sends what is queued
            raise TypeError("a message has at least one frame")
        for frame in frames:
            if frame.__class__ is not bytes:  # refused here, for another thread may be the one that sends it
                raise TypeError(f"a frame must be bytes, not {type(frame).__name__}")
        queue = self._queue
        if len(queue) >= self._backlog:
            self._wait_for_room()
        queue.append(frames)
        lock = self._lock
        # Looked at again after the release: one who appended in between found the lock taken and went away.
        while queue and lock.acquire(False):
            try:
                all_sent = self._drain()
            finally:
                lock.release()
            if not all_sent:
                self._attendant.nudge(self)
                return

    def _drain(self) -> bool:
        """Send what is queued, with the lock held. Returns ``False`` if something had to stay."""
        if self._closed:
            raise PoolClosed("zmq")
        socket = self._socket or self._open()
        if self._holding_until and not self._may_begin(socket):
            return False
        queue = self._queue
        take = queue.popleft
        sent = 0
        try:
            while queue:
                frames = take()
                try:
                    if len(frames) == 1:
                        raw_send(socket, frames[0], NOBLOCK)
                    else:
                        _send_all(socket, frames)
                except zmq.Again:
                    queue.appendleft(frames)
                    return False
                sent += 1
        finally:
            self._sent += sent
        return True

    def _open(self) -> LeanSocket:
        self._socket = socket = self._open_socket()
        if self.config.socket_type is SocketType.PUB:
            self._holding_until = time.monotonic() + self.config.subscriber_wait
        return socket

    def _may_begin(self, socket: LeanSocket) -> bool:
        """Say whether the first subscriber is there, or has been waited for long enough."""
        if not int(socket.get(zmq.EVENTS)) & zmq.POLLIN and time.monotonic() < self._holding_until:
            return False
        self._holding_until = 0.0
        return True

    def _wait_for_room(self) -> None:
        """Block until the queue has room: the back-pressure that keeps a fast sender from filling the memory."""
        deadline = time.monotonic() + self.config.send_timeout
        while len(self._queue) >= self._backlog:
            if self._closed:
                raise PoolClosed("zmq")
            # Whoever has the lock is sending; after that it is this thread's turn to make room.
            if self._lock.acquire(timeout=max(0.0, min(_TURN, deadline - time.monotonic()))):
                try:
                    if self._drain():
                        return
                finally:
                    self._lock.release()
                self._attendant.nudge(self)
                self._room.clear()
                self._room.wait(_TURN)
            if time.monotonic() >= deadline and len(self._queue) >= self._backlog:
                if self.config.socket_type is SocketType.PUB:
                    self._overrun()
                    return
                self._refused += 1
                raise NotSent(
                    f"{self.config.label}: {len(self._queue)} messages are queued and none could be sent for "
                    f"{self.config.send_timeout:g} s. This one was not queued; sending it again is safe"
                )

    def _overrun(self) -> None:
        """Send all that is queued past the subscribers that are too slow: they miss it, the others do not.

        While the socket is leased nothing can be sent, and the oldest message makes room.
        """
        if not self._lock.acquire(False):
            # A lessee has the socket, perhaps a task of the very thread that is to wait here.
            with contextlib.suppress(IndexError):
                self._queue.popleft()
                self._overruns += 1
            return
        try:
            if self._socket is not None and not self._closed:
                self._overruns += 1
                raw_set(self._socket, zmq.XPUB_NODROP, 0)
                self._drain()
                raw_set(self._socket, zmq.XPUB_NODROP, 1)
        finally:
            self._lock.release()

    # The attendant's part

    def descriptor(self) -> int | None:
        """Return the socket's descriptor, unless a lessee has the socket."""
        socket = self._socket
        if socket is None or self._lock.locked():
            return None
        return int(socket.get(zmq.FD))

    def attend(self) -> bool:
        """Send what is queued. Returns whether all of it was sent."""
        if not self._queue:
            return True
        if not self._lock.acquire(False):
            return False
        try:
            return self._closed or self._drain()
        finally:
            self._lock.release()
            self._room.set()

    def sweep(self) -> None:
        """Read the subscriptions that came and went: an XPUB keeps them all until they are read."""
        if self._socket is None or not self._lock.acquire(False):
            return
        try:
            with contextlib.suppress(zmq.Again):
                while self._socket is not None and self._socket.type == zmq.XPUB:
                    raw_recv(self._socket, NOBLOCK)
        finally:
            self._lock.release()
        if self._queue:
            self._attendant.nudge(self)

    # Leases

    def lend(self, seconds: float) -> LeanSocket:
        """Return the socket for exclusive use until ``take_back``, after what is queued was sent.

        Args:
            seconds: how long to wait for the first subscriber and for what is queued.
        """
        self._lock.acquire()
        try:
            deadline = time.monotonic() + seconds
            while not self._drain() and time.monotonic() < deadline:
                assert self._socket is not None
                self._socket.poll(_PATIENCE_MS, self._awaited())
            assert self._socket is not None
            self._lent = True
            return self._socket
        except BaseException:
            self._lock.release()
            raise

    async def lend_async(self, seconds: float) -> LeanSocket:
        """Do what ``lend`` does without blocking the event loop."""
        # Held by others only for as long as sending without waiting takes: leases exclude each other before.
        self._lock.acquire()
        try:
            deadline = time.monotonic() + seconds
            while not self._drain() and time.monotonic() < deadline:  # noqa: ASYNC110 - the event is libzmq's
                await asyncio.sleep(_PATIENCE_MS / 1000)
            assert self._socket is not None
            self._lent = True
            return self._socket
        except BaseException:
            self._lock.release()
            raise

    def _awaited(self) -> int:
        return int(zmq.POLLIN if self._holding_until else zmq.POLLOUT)

    def take_back(self, *, healthy: bool) -> None:
        """End a lease; a socket that is not healthy is closed, and the next message opens another."""
        self._lent = False
        socket = self._socket
        if socket is not None and (self._closed or not (socket.reusable() and healthy)):
            self._socket = None
            socket.close()
        self._lock.release()
        if self._queue:
            self._attendant.nudge(self)

    def forsake(self) -> None:
        """End a lease that was lost. Its socket is left to whoever may still use it, and closes with them."""
        if self._lent:
            self._socket = None
            self.take_back(healthy=False)

    # Life

    def close(self, deadline: float) -> int:
        """Send what is queued, at most until ``deadline`` (monotonic seconds), and close the socket.

        Returns:
            how many messages had to be dropped.
        """
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            self._closed = True  # the lessee, who still has the socket, closes it at the return
            return len(self._queue)
        try:
            while self._queue and not self._drain() and time.monotonic() < deadline:
                assert self._socket is not None
                self._socket.poll(_PATIENCE_MS, self._awaited())
            self._closed = True
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            dropped = len(self._queue)
            self._queue.clear()
            return dropped
        finally:
            self._lock.release()
            self._attendant.unwatch(self)
            self._room.set()

    @property
    def is_open(self) -> bool:
        """Whether the socket is open."""
        return self._socket is not None

    def figures(self) -> dict[str, int]:
        """Return what went through."""
        return {"sent": self._sent, "queued": len(self._queue), "refused": self._refused, "overruns": self._overruns}


def _send_all(socket: LeanSocket, frames: Frames) -> None:
    """Send a message of several frames, or raise ``zmq.Again`` with nothing of it sent.

    A frame after the first is refused if the peer goes away in between. libzmq then takes the first ones back, and
    drops what follows up to the last frame (``lb_t::sendpipe``).
    """
    *front, last = frames
    begun = False
    for frame in front:
        try:
            raw_send(socket, frame, NOBLOCK_SNDMORE)
        except zmq.Again:
            if begun:
                raw_send(socket, last, NOBLOCK)  # ends what libzmq drops; the message is sent again as a whole
            raise
        begun = True
    raw_send(socket, last, NOBLOCK)
