"""The asyncio face of a leased socket: the same methods, awaited.

An operation is tried without waiting first. Only if it would block does the event loop watch the socket's
descriptor. That descriptor is edge-triggered: it becomes readable when something happened, not while something
is there, and any operation may take the edge. So ``EVENTS`` is read after the watch begins, after each wake-up
and after each operation while others wait.

The watch lasts until the end of the lease, because each begin and end is a system call. The loop keeps the socket
alive by it only while a task waits: a lease that is lost must not stay open.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import pickle
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import zmq
import zmq.asyncio
from zmq.utils import jsonapi

from app.pools.errors import LeaseEnded
from app.pools.zmq_pool.sockets import LeanSocket
from app.pools.zmq_pool.timeouts import ReplyLost
from app.pools.zmq_pool.watchful import LOOK_EVERY, WatchfulSocket

R = TypeVar("R")

_NOBLOCK = int(zmq.NOBLOCK)
_POLLIN = int(zmq.POLLIN)
_POLLOUT = int(zmq.POLLOUT)


class AsyncSocket:
    """A leased socket for the event loop that runs; every other attribute is that of the ``zmq.Socket``.

    Several tasks may wait at once; messages go to receivers in the order in which they began to wait. A
    receive that is cancelled takes no message with it. What still waits when the lease ends, or the socket is
    detached, and what comes later, fails as ``LeaseEnded``: the next lessee may have the socket.
    """

    _own = frozenset(
        {"_ended", "_is_down", "_loop", "_lookout", "_pollers", "_receivers", "_senders", "_socket", "_watch"}
    )
    _watch: _Watch | None = None
    _ended = False

    def __init__(self, socket: LeanSocket) -> None:
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._receivers: deque[asyncio.Future[None]] = deque()
        self._senders: deque[asyncio.Future[None]] = deque()
        # Apart from the receivers, since they take no message: all are woken, and hold up nobody.
        self._pollers: dict[asyncio.Future[int], int] = {}
        self._lookout: asyncio.TimerHandle | None = None
        self._is_down = False

    def __del__(self) -> None:
        watch = self._watch
        if watch is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and watches nothing any more
                # In the loop's thread; with the socket, for until then its descriptor must not be another's.
                self._loop.call_soon_threadsafe(watch.end, self._socket)

    def __getattr__(self, name: str) -> Any:
        if name in self._own:
            raise AttributeError(name)
        self._rouse()  # what it is may take the edge
        return getattr(self._socket, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._own:
            object.__setattr__(self, name, value)
        else:
            setattr(self._socket, name, value)

    def __repr__(self) -> str:
        return f"<AsyncSocket {self._socket.config.label}>"

    # Sending

    async def send(self, data: Any, flags: int = 0, copy: bool = True, track: bool = False, **draft: Any) -> Any:
        """Send one frame."""
        socket = self._socket
        return await self._send(lambda: socket.send(data, flags | _NOBLOCK, copy, track, **draft), flags)

    async def send_multipart(
        self, msg_parts: Sequence[Any], flags: int = 0, copy: bool = True, track: bool = False, **draft: Any
    ) -> Any:
        """Send a message of several frames."""
        socket = self._socket
        return await self._send(lambda: socket.send_multipart(msg_parts, flags | _NOBLOCK, copy, track, **draft), flags)

    async def send_string(
        self, u: str, flags: int = 0, copy: bool = True, encoding: str = "utf-8", **draft: Any
    ) -> Any:
        """Send ``u`` as one frame."""
        return await self.send(u.encode(encoding), flags, copy, **draft)

    send_unicode = send_string

    async def send_json(self, obj: Any, flags: int = 0, **kwargs: Any) -> Any:
        """Send ``obj`` as one frame of JSON."""
        return await self.send(jsonapi.dumps(obj, **kwargs), flags)

    async def send_pyobj(self, obj: Any, flags: int = 0, protocol: int = pickle.DEFAULT_PROTOCOL, **kwargs: Any) -> Any:
        """Send ``obj`` as one frame, pickled."""
        return await self.send(pickle.dumps(obj, protocol), flags, **kwargs)

    async def send_serialized(
        self, msg: Any, serialize: Callable[[Any], Sequence[Any]], flags: int = 0, copy: bool = True, **kwargs: Any
    ) -> Any:
        """Send the frames that ``serialize(msg)`` returns."""
        return await self.send_multipart(serialize(msg), flags, copy, **kwargs)

    # Receiving

    async def recv(self, flags: int = 0, copy: bool = True, track: bool = False) -> Any:
        """Receive one frame."""
        socket = self._socket
        return await self._receive(lambda: socket.recv(flags | _NOBLOCK, copy, track), flags)

    async def recv_multipart(self, flags: int = 0, copy: bool = True, track: bool = False) -> list[Any]:
        """Receive all frames of a message."""
        socket = self._socket
        return await self._receive(lambda: socket.recv_multipart(flags | _NOBLOCK, copy, track), flags)

    async def recv_into(self, buffer: Any, /, *, nbytes: int = 0, flags: int = 0) -> int:
        """Receive one frame into a buffer; return its length."""
        socket = self._socket
        return await self._receive(lambda: socket.recv_into(buffer, nbytes=nbytes, flags=flags | _NOBLOCK), flags)

    async def recv_string(self, flags: int = 0, encoding: str = "utf-8") -> str:
        """Receive one frame as text."""
        text: str = (await self.recv(flags)).decode(encoding)
        return text

    recv_unicode = recv_string

    async def recv_json(self, flags: int = 0, **kwargs: Any) -> Any:
        """Receive one frame as JSON."""
        return jsonapi.loads(await self.recv(flags), **kwargs)

    async def recv_pyobj(self, flags: int = 0) -> Any:
        """Receive one frame as a pickled object. Only from a peer that is trusted: unpickling can execute anything."""
        return pickle.loads(await self.recv(flags))

    async def recv_serialized(self, deserialize: Callable[[list[Any]], R], flags: int = 0, copy: bool = True) -> R:
        """Receive a message and return what ``deserialize(frames)`` makes of it."""
        return deserialize(await self.recv_multipart(flags, copy))

    async def poll(self, timeout: int | None = None, flags: int = zmq.POLLIN) -> int:
        """Wait up to ``timeout`` milliseconds until the socket is ready for one of ``flags``; return which, or 0."""
        self._check_lease()
        events = int(self._socket.get(zmq.EVENTS)) & flags
        if events or timeout == 0:
            self._rouse()
            return events
        waiter: asyncio.Future[int] = self._loop.create_future()
        self._pollers[waiter] = flags
        try:
            self._begin_watch()
            async with asyncio.timeout(None if timeout is None or timeout < 0 else timeout / 1000):
                return await waiter
        except TimeoutError:
            return 0
        finally:
            del self._pollers[waiter]
            self._let_go()

    def get_monitor_socket(self, events: int | None = None, addr: str | None = None) -> zmq.asyncio.Socket:
        """Return a socket whose receives, awaited, give the socket's events; the socket is given up afterwards."""
        return zmq.asyncio.Socket.from_socket(self._socket.get_monitor_socket(events, addr))

    def close(self, linger: int | None = None) -> None:
        """Close the socket; who waits for it finds it closed."""
        self._end_watch()  # first: its descriptor may be another's as soon as it is closed
        self._socket.close(linger)
        self._look()

    # Waiting

    async def _send(self, operation: Callable[[], R], flags: int) -> R:
        try:
            return self._attempt(operation)
        except zmq.Again:
            if flags & _NOBLOCK:
                raise
        try:
            return await self._perform(operation, self._senders, self._limit(zmq.SNDTIMEO))
        except TimeoutError:
            raise self._socket.not_sent() from None

    async def _receive(self, operation: Callable[[], R], flags: int) -> R:
        if not self._receivers:
            try:
                return self._attempt(operation)
            except zmq.Again:
                if flags & _NOBLOCK:
                    raise
        elif flags & _NOBLOCK:  # what is there is for those who wait
            raise zmq.Again
        socket = self._socket
        if self._lookout is None and isinstance(socket, WatchfulSocket) and socket.watchful:
            self._lookout = self._loop.call_later(LOOK_EVERY, _look_out, weakref.ref(self))
        try:
            return await self._perform(operation, self._receivers, self._limit(zmq.RCVTIMEO))
        except ReplyLost:  # a TimeoutError as well
            raise
        except TimeoutError:
            raise socket.not_received() from None

    def _look_out(self) -> None:
        """Fail those who wait for a reply if the endpoint is down."""
        self._lookout = None
        socket = self._socket
        if not self._receivers or not isinstance(socket, WatchfulSocket):
            self._is_down = False
            return
        try:
            self._is_down = socket.look(self._is_down)
        except ReplyLost as lost:
            self._is_down = False
            for waiter in self._receivers:
                if not waiter.done():
                    waiter.set_exception(copy.copy(lost))
        self._lookout = self._loop.call_later(LOOK_EVERY, _look_out, weakref.ref(self))

    def _attempt(self, operation: Callable[[], R]) -> R:
        if self._ended:
            self._check_lease()
        try:
            return operation()
        finally:
            self._rouse()  # the operation may have taken the edge that another task waits for

    def _rouse(self) -> None:
        if self._receivers or self._senders or self._pollers:
            self._loop.call_soon(self._look)

    def _limit(self, option: int) -> float | None:
        milliseconds = int(self._socket.get(option))
        return None if milliseconds < 0 else milliseconds / 1000

    async def _perform(
        self, operation: Callable[[], R], queue: deque[asyncio.Future[None]], seconds: float | None
    ) -> R:
        """Do ``operation`` as soon as it does not raise ``zmq.Again``; ``TimeoutError`` after ``seconds``."""
        async with asyncio.timeout(seconds):
            while True:
                waiter = self._loop.create_future()
                queue.append(waiter)
                try:
                    self._begin_watch()
                    await waiter
                finally:
                    queue.remove(waiter)
                    self._let_go()
                    self._rouse()  # cancelled after it was woken, the wake-up is the next one's
                with contextlib.suppress(zmq.Again):
                    return self._attempt(operation)

    def _begin_watch(self) -> None:
        watch = self._watch
        if watch is None:
            watch = self._watch = _Watch(self._loop, int(self._socket.get(zmq.FD)))
            watch.begin(self)
        watch.waited_for = self
        self._loop.call_soon(self._look)

    def _let_go(self) -> None:
        """Have the loop forget a socket that no task waits for."""
        if self._watch is not None and not (self._receivers or self._senders or self._pollers):
            self._watch.waited_for = None

    def _look(self) -> None:
        """Wake those who can go on, of receivers and senders the first."""
        if not self._receivers and not self._senders and not self._pollers:
            return
        try:
            events = int(self._socket.get(zmq.EVENTS))
        except zmq.ZMQError:  # closed or terminated: each operation finds out by itself
            events = _POLLIN | _POLLOUT
        if events & _POLLIN:
            _wake_first(self._receivers)
        if events & _POLLOUT:
            _wake_first(self._senders)
        for poller, flags in self._pollers.items():
            if events & flags and not poller.done():
                poller.set_result(events & flags)

    def _check_lease(self) -> None:
        if self._ended:
            raise LeaseEnded(self._socket.config.label)

    def release(self) -> LeanSocket:
        """Return the socket, which is another's from now on: no task may wait for it any more."""
        self._end_watch()
        self._ended = True
        waiting: list[asyncio.Future[Any]] = [*self._receivers, *self._senders, *self._pollers]
        for waiter in waiting:
            if not waiter.done():
                waiter.set_exception(LeaseEnded(self._socket.config.label))
        return self._socket

    def _end_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.end()
        if self._lookout is not None:
            self._lookout.cancel()
            self._lookout = None


class _Watch:
    """An event loop's watch of a socket's descriptor."""

    __slots__ = ("_descriptor", "_loop", "_socket", "waited_for")

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self.waited_for: AsyncSocket | None = None
        """The socket, while a task waits for it: the loop must keep the task alive, which only the socket knows."""

    def begin(self, socket: AsyncSocket) -> None:
        """Have the loop tell ``socket`` when something happened."""
        self._socket = weakref.ref(socket)
        self._loop.add_reader(self._descriptor, self._tell)

    def _tell(self) -> None:
        socket = self._socket()
        if socket is not None:
            socket._look()

    def end(self, keeping: object = None) -> None:
        """Watch no more. What is ``keeping`` the descriptor open lives until then."""
        self._loop.remove_reader(self._descriptor)


def _look_out(reference: weakref.ref[AsyncSocket]) -> None:
    socket = reference()
    if socket is not None:
        socket._look_out()


def _wake_first(queue: deque[asyncio.Future[None]]) -> None:
    for waiter in queue:
        if not waiter.done():
            waiter.set_result(None)
        return
