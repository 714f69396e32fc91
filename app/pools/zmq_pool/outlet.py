"""The one kept socket of a PUB or PUSH configuration, through which many threads send.

Flat combining: who sends appends the message to a queue; whoever then finds the lock free sends all that is queued,
without waiting. Nobody's messages change their order, and there is no thread in between. What cannot be sent now
(no subscriber yet, no peer, a full queue) stays queued and is sent by the attendant, as soon as the socket's
descriptor or the next tick says so.

Two things say who may use the socket. The lock is held while queued messages are sent, and never for longer. It is
only taken by ``with``, which an interrupt (a KeyboardInterrupt, raised in the middle of anything) cannot leave
halfway, as it can an ``acquire()``; so whoever does not want to wait for it looks at it first. ``_lent`` is who has
leased the socket: until the lease's end nothing is sent by anybody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import zmq

from app.pools.errors import EndpointBusy, NotSent, OutOfDescriptors, PoolClosed, PoolError, PoolTimeout
from app.pools.zmq_pool.attendant import Attendant
from app.pools.zmq_pool.backend import NOBLOCK, NOBLOCK_SNDMORE, raw_recv, raw_send, raw_set
from app.pools.zmq_pool.backlog import Backlog, Frames
from app.pools.zmq_pool.config import FOREVER, SocketConfig, SocketType
from app.pools.zmq_pool.inherited import disinherit
from app.pools.zmq_pool.sockets import LeanSocket

log = logging.getLogger(__name__)

_PATIENCE = 0.005
_LOOK_EVERY = 1.0
"""Seconds after which who waits for room looks again by itself: an interrupt may have cost the wake-up."""


class Outlet:
    """Sends through one socket, opened at the first message.

    Args:
        config: a PUB or PUSH configuration.
        open_socket: opens the socket, or returns ``None`` if it is to be tried again later; it is told when the
            one before was closed. It is called under the outlet's lock, so it must not wait.
        attendant: sends later what cannot be sent at once.
    """

    def __init__(
        self, config: SocketConfig, open_socket: Callable[[float], LeanSocket | None], attendant: Attendant
    ) -> None:
        self.config = config
        self._open_socket = open_socket
        self._attendant = attendant
        self._capacity = config.backlog
        self._reset()

    def _reset(self) -> None:
        self._backlog = Backlog(self._capacity)
        self._queue = self._backlog.queue
        self._waiting = self._backlog.waiting
        self._lock = threading.Lock()
        self._lent: object | None = None
        self._socket: LeanSocket | None = None
        self._ready: LeanSocket | None = None  # the socket, while it may be used without looking any further
        self._descriptor: int | None = None
        self._holding_until = 0.0
        self._freed_at = -FOREVER
        self._closed = False
        self._complained = False
        self._sent = 0
        self._refused = 0
        self._overruns = 0

    def send(self, frames: Frames, *, waited: bool = False) -> None:
        """Send a message, or queue it in its place; in the order of the calls of each thread.

        A full queue is waited for. After ``config.send_timeout`` seconds PUB goes on without the subscribers
        that are too slow, as PUB does by nature; PUSH, which loses nothing, refuses the message.

        Args:
            frames: the message.
            waited: whether the caller has waited for room, if there was none.

        Raises:
            NotSent: the queue of a PUSH stayed full.
            EndpointBusy: the endpoint to bind is taken.
            OutOfDescriptors: there have been none for the socket for a while.
            PoolTimeout: all places below the cap over all keys have been taken for a while.
            PoolClosed: the pool is stopped.
        """
        if not frames:
            _refuse(frames)
        for frame in frames:
            if frame.__class__ is not bytes:
                _refuse(frames)
        queue, lock = self._queue, self._lock
        if len(queue) >= self._capacity and not waited:
            self._wait_for_room()
        try:
            queue.append(frames)
            # Looked at again after the release: one who appended in between found the lock taken and went away.
            while queue:
                if lock.locked() or self._lent is not None:
                    if self._closed:
                        self._withdraw(frames)
                    return
                with lock:
                    try:
                        all_sent = self._drain()
                    except Exception:
                        if self._backlog.withdraw(frames):
                            raise
                        all_sent = False  # this one is on its way; it was another one that failed
                if not all_sent:
                    self._attendant.nudge(self)
                    return
        except BaseException:
            if queue:  # with messages of others, who have gone away
                self._attendant.nudge(self)
            raise

    def _withdraw(self, frames: Frames) -> None:
        """Refuse a message that came after the end, unless it was counted among those that had to be dropped."""
        with self._lock:  # others may withdraw theirs, and the end drops what is queued
            if self._backlog.withdraw(frames):
                raise PoolClosed("zmq")

    async def send_async(self, frames: Frames) -> None:
        """Do what ``send`` does without blocking the event loop."""
        if len(self._queue) >= self._capacity:
            await self._wait_for_room_async()
        self.send(frames, waited=True)

    def _drain(self) -> bool:
        """Send what is queued, with the lock held. Returns ``False`` if something had to stay for the attendant."""
        socket = self._ready or self._prepare()
        if socket is None:
            return self._lent is not None  # then the lease's end sees to it
        queue = self._queue
        sent = 0
        try:
            while queue:
                frames = queue[0]
                if len(frames) == 1:
                    try:
                        raw_send(socket, frames[0], NOBLOCK)
                    except Exception:
                        raise
                    except BaseException:  # an interrupt, which mostly shows after the send: no message goes out twice
                        queue.popleft()
                        raise
                    queue.popleft()
                else:
                    self._send_parts(socket, frames)
                    queue.popleft()
                sent += 1
        except zmq.Again:
            return False
        finally:
            self._sent += sent
            if self._waiting:
                self._backlog.call_waiting()
        return True

    def _send_parts(self, socket: LeanSocket, frames: Frames) -> None:
        """Send a message of several frames, or raise ``zmq.Again`` with nothing of it sent.

        A frame after the first is refused if the peer goes away in between. libzmq then takes the first ones back, and
        drops what follows up to the last frame (``lb_t::sendpipe``).
        """
        *front, last = frames
        begun = 0
        try:
            for frame in front:
                begun += 1
                raw_send(socket, frame, NOBLOCK_SNDMORE)
            begun += 1
            raw_send(socket, last, NOBLOCK)
        except zmq.Again:
            if 1 < begun < len(frames):
                raw_send(socket, last, NOBLOCK)  # ends what libzmq drops; the message is sent again as a whole
            raise
        except BaseException as error:
            if begun == len(frames) and not isinstance(error, Exception):
                self._queue.popleft()  # as with a single frame
            if begun:
                self._close_socket()  # which takes half a message back: the next one would become a part of it
            raise

    def _prepare(self) -> LeanSocket | None:
        """Return the socket, open; or ``None`` while it may not be used."""
        if self._closed:
            raise PoolClosed("zmq")
        if self._lent is not None:
            return None
        socket = self._socket or self._open()
        if socket is None or (self._holding_until and not self._may_begin(socket)):
            return None
        self._ready = socket
        return socket

    def _open(self) -> LeanSocket | None:
        """Open the socket. Returns ``None`` while what it needs is still to be given up by others."""
        if self.config.socket_type is SocketType.PUB:
            self._holding_until = time.monotonic() + self.config.subscriber_wait
        try:
            self._socket = socket = self._open_socket(self._freed_at)
        except EndpointBusy:
            raise
        except BaseException:
            self._freed_at = time.monotonic()
            raise
        if socket is not None:
            self._complained = False
            self._descriptor = int(socket.get(zmq.FD))
        return socket

    def _may_begin(self, socket: LeanSocket) -> bool:
        """Say whether the first subscriber is there, or has been waited for long enough."""
        if not int(socket.get(zmq.EVENTS)) & zmq.POLLIN and time.monotonic() < self._holding_until:
            return False
        self._holding_until = 0.0
        return True

    # A full queue

    def _wait_for_room(self) -> None:
        """Block until the queue has room: the back-pressure that keeps a fast sender from filling the memory."""
        deadline = time.monotonic() + self.config.send_timeout
        while self._crowded():
            left = deadline - time.monotonic()
            if left <= 0:
                self._give_up()
                return
            self._backlog.wait(min(left, _LOOK_EVERY))

    async def _wait_for_room_async(self) -> None:
        deadline = time.monotonic() + self.config.send_timeout
        while self._crowded():
            left = deadline - time.monotonic()
            if left <= 0:
                self._give_up()
                return
            await self._backlog.wait_async(min(left, _LOOK_EVERY))

    def _crowded(self) -> bool:
        """Say whether the queue is full, also after an attempt to send."""
        if self._closed:
            raise PoolClosed("zmq")
        if self._lent is None and not self._lock.locked():
            with self._lock:
                all_sent = self._drain()
            if not all_sent:
                self._attendant.nudge(self)
        return self._backlog.full

    def _give_up(self) -> None:
        """Have the queue accept one more message, or raise."""
        if self.config.socket_type is SocketType.PUB:
            self._overrun()
            return
        self._refused += 1
        why = self._socket.__dict__["diagnose"]() if self._socket is not None else ""
        raise NotSent(
            f"{self.config.label}: {len(self._queue)} messages are queued and none could be sent for "
            f"{self.config.send_timeout:g} s{why and f' ({why})'}. This one was not queued; sending it again is safe"
        )

    def _overrun(self) -> None:
        """Send all that is queued past the subscribers that are too slow: they miss it, the others do not.

        While the socket is leased nothing can be sent, and the oldest message makes room.
        """
        if self._lock.locked():
            return  # whoever sends makes room
        with self._lock:
            socket = self._socket
            if self._lent is not None:
                if self._backlog.full:
                    self._queue.popleft()
                    self._overruns += 1
            elif socket is not None and not self._closed:
                self._overruns += 1
                try:
                    raw_set(socket, zmq.XPUB_NODROP, 0)
                    self._drain()
                finally:
                    if not socket.closed:
                        raw_set(socket, zmq.XPUB_NODROP, 1)

    # The attendant's part

    def descriptor(self) -> int | None:
        """Return the socket's descriptor, unless a lessee has the socket."""
        return self._descriptor if self._lent is None else None

    def attend(self) -> bool:
        """Send what is queued. Returns ``False`` if something has to be tried again."""
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

    # Leases

    def lend(self, lessee: object, seconds: float) -> LeanSocket:
        """Return the socket for exclusive use until ``take_back``, after what is queued was sent.

        Args:
            lessee: who leases it. Leases exclude each other before they come here.
            seconds: how long to wait for the first subscriber and for what is queued.

        Raises:
            EndpointBusy: the endpoint to bind is taken.
            PoolClosed: the pool is stopped.
        """
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
            self._socket.poll(int(1000 * _PATIENCE), zmq.POLLIN if self._holding_until else zmq.POLLOUT)

    def take_back(self, lessee: object, *, healthy: bool) -> None:
        """End the lease of ``lessee``, if it is that one which is out.

        A socket that is not healthy is closed, and the next message opens another.
        """
        if self._lent is lessee:
            with self._lock:
                socket = self._socket
                if socket is not None and (self._closed or not (socket.reusable() and healthy)):
                    self._close_socket()
                self._lent = None
        if self._queue:  # also beside a lease that could not begin: who sent meanwhile left it to that one
            self._attendant.nudge(self)

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

        Returns:
            how many messages had to be dropped.
        """
        try:
            self._send_until(deadline)
        except (PoolError, zmq.ZMQError) as error:
            log.warning("%s: what is queued cannot be sent: %s", self.config.label, error)
        with self._lock:
            self._closed = True
            if self._lent is None:  # else the lessee closes it at the return
                self._close_socket()
            dropped = len(self._queue)
            for _ in range(dropped):  # and no more: one that is appended meanwhile is refused, not lost unsaid
                self._queue.popleft()
        self._attendant.unwatch(self)
        self._backlog.call_waiting()
        return dropped

    def _send_until(self, deadline: float) -> None:
        while self._queue and self._lent is None:
            with self._lock:
                if not self._drain():
                    if time.monotonic() >= deadline:
                        return
                    self._wait_a_moment()

    def _close_socket(self) -> None:
        self._freed_at = time.monotonic()
        socket, self._socket, self._ready, self._descriptor = self._socket, None, None, None
        if socket is not None:
            socket.close()

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


def _refuse(frames: Frames) -> NoReturn:
    """Raise what is wrong with a message, in the call that gives it: another thread may be the one that sends it."""
    for frame in frames:
        if frame.__class__ is not bytes:
            raise TypeError(f"a frame must be bytes, not {type(frame).__name__}")
    raise TypeError("a message has at least one frame")
