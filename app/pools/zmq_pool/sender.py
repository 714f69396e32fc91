"""Sending through one kept socket from many threads: flat combining.

Who sends appends the message to a queue; whoever then finds the lock free sends all that is queued,
without waiting. Nobody's messages change their order, and there is no thread in between. What cannot be sent now
(no subscriber yet, no peer, a full queue) stays queued and is sent by the attendant, as soon as the socket's
descriptor or the next tick says so.

Two things say who may use the socket. The lock is held while queued messages are sent, and never for longer. It is
only taken by ``with``, which an interrupt (a KeyboardInterrupt, raised in the middle of anything) cannot leave
halfway, as it can an ``acquire()``; so whoever does not want to wait for it looks at it first. ``_lent`` is who has
leased the socket: until the lease's end nothing is sent by anybody else.

A signal's handler may come while its own thread holds the lock, and would wait for ever: it looks whether it has
interrupted such a call, and leaves to the attendant what must come after it.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NoReturn

import zmq

from app.pools.errors import EndpointBusy, NotSent, PoolClosed
from app.pools.zmq_pool.attendant import Attendant
from app.pools.zmq_pool.backend import NOBLOCK, NOBLOCK_SNDMORE, raw_send, raw_set
from app.pools.zmq_pool.backlog import Backlog, Frames
from app.pools.zmq_pool.config import FOREVER, SocketConfig, SocketType
from app.pools.zmq_pool.sockets import LeanSocket

_LOOK_EVERY = 1.0
"""Seconds after which who waits for room looks again by itself: an interrupt may have cost the wake-up."""


class Sender(ABC):
    """Sends through one socket, opened at the first message. The attendant serves it.

    Args:
        config: a PUB or PUSH configuration.
        open_socket: opens the socket, or returns ``None`` if it is to be tried again later; it is told when the
            one before was closed. It is called under the lock here, so it must not wait.
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
        self._outdated = False  # whether it is to be closed at the end of its lease
        self._holding_until = 0.0
        self._freed_at = -FOREVER
        self._closed = False
        self.left_open = False  # by a close that could not do all
        self._complained = False
        self._sent = 0
        self._refused = 0
        self._overruns = 0

    @abstractmethod
    def descriptor(self) -> int | None:
        """Return what the attendant is to wait for."""

    @abstractmethod
    def attend(self) -> bool:
        """Send what is queued. Returns ``False`` if something has to be tried again."""

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
                    self._leave_to_attendant(frames)
                    return
        except BaseException:
            if queue:  # with messages of others, who have gone away
                self._attendant.nudge(self)
            raise

    def _leave_to_attendant(self, frames: Frames) -> None:
        """Have the attendant send what is queued, or take a message back if it cannot: it has no thread yet."""
        try:
            self._attendant.nudge(self)
        except Exception:
            with self._lock:
                withdrawn = self._backlog.withdraw(frames)
            if withdrawn:
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
        except zmq.ContextTerminated:  # by a stop in a signal's handler, which came in between
            raise PoolClosed("zmq") from None
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
        for seconds in self._waits_for_room():
            self._backlog.wait(seconds)

    async def _wait_for_room_async(self) -> None:
        for seconds in self._waits_for_room():
            await self._backlog.wait_async(seconds)

    def _waits_for_room(self) -> Iterator[float]:
        """Yield for how many seconds to wait at most, until the queue has room or is given up."""
        deadline = time.monotonic() + self.config.send_timeout
        while self._crowded():
            left = deadline - time.monotonic()
            if left <= 0:
                self._give_up()
                return
            yield min(left, _LOOK_EVERY)

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

        While nothing can be sent, because the socket is leased, is not open yet or waits for its first subscriber, the
        oldest message makes room.
        """
        if self._lock.locked():
            return  # whoever sends makes room
        with self._lock:
            if self._closed or not self._backlog.full:
                return
            self._overruns += 1
            if self._lent is None and self._socket is not None:
                self._drain_past_the_slow(self._socket)
            if self._backlog.full:
                self._queue.popleft()

    def _drain_past_the_slow(self, socket: LeanSocket) -> None:
        try:
            raw_set(socket, zmq.XPUB_NODROP, 0)
            self._drain()
        finally:
            if not socket.closed:
                raw_set(socket, zmq.XPUB_NODROP, 1)

    # Its end

    def _close_socket(self) -> None:
        self._freed_at = time.monotonic()
        socket, self._socket, self._ready, self._descriptor = self._socket, None, None, None
        self._outdated = False
        if socket is not None:
            socket.close()


def _refuse(frames: Frames) -> NoReturn:
    """Raise what is wrong with a message, in the call that gives it: another thread may be the one that sends it."""
    for frame in frames:
        if frame.__class__ is not bytes:
            raise TypeError(f"a frame must be bytes, not {type(frame).__name__}")
    raise TypeError("a message has at least one frame")
