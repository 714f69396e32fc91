"""The asyncio face of a leased socket: the same methods, awaited.

An operation is tried without waiting first. Only if it would block does the event loop watch the socket's
descriptor. That descriptor is edge-triggered: it becomes readable when something happened, not while something
is there, and any operation may take the edge. So ``EVENTS`` is read after the watch begins, after each wake-up
and after each operation while others wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import zmq
from zmq.utils import jsonapi

from app.pools.zmq_pool.sockets import LeanSocket

R = TypeVar("R")

_NOBLOCK = int(zmq.NOBLOCK)
_POLLIN = int(zmq.POLLIN)
_POLLOUT = int(zmq.POLLOUT)


class AsyncSocket:
    """A leased socket for the event loop that runs; every other attribute is that of the ``zmq.Socket``.

    Several tasks may wait at once; messages go to receivers in the order in which they began to wait. A
    receive that is cancelled takes no message with it.
    """

    _own = frozenset({"_loop", "_receivers", "_senders", "_socket", "_watched"})

    def __init__(self, socket: LeanSocket) -> None:
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._receivers: deque[asyncio.Future[None]] = deque()
        self._senders: deque[asyncio.Future[None]] = deque()
        self._watched: int | None = None

    def __getattr__(self, name: str) -> Any:
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

    async def send_string(self, u: str, flags: int = 0, copy: bool = True, encoding: str = "utf-8") -> Any:
        """Send ``u`` as one frame."""
        return await self.send(u.encode(encoding), flags, copy)

    async def send_json(self, obj: Any, flags: int = 0, **kwargs: Any) -> Any:
        """Send ``obj`` as one frame of JSON."""
        return await self.send(jsonapi.dumps(obj, **kwargs), flags)

    async def send_serialized(
        self, msg: Any, serialize: Callable[[Any], Sequence[Any]], flags: int = 0, copy: bool = True
    ) -> Any:
        """Send the frames that ``serialize(msg)`` returns."""
        return await self.send_multipart(serialize(msg), flags, copy)

    # Receiving

    async def recv(self, flags: int = 0, copy: bool = True, track: bool = False) -> Any:
        """Receive one frame."""
        socket = self._socket
        return await self._receive(lambda: socket.recv(flags | _NOBLOCK, copy, track), flags)

    async def recv_multipart(self, flags: int = 0, copy: bool = True, track: bool = False) -> list[Any]:
        """Receive all frames of a message."""
        socket = self._socket
        return await self._receive(lambda: socket.recv_multipart(flags | _NOBLOCK, copy, track), flags)

    async def recv_string(self, flags: int = 0, encoding: str = "utf-8") -> str:
        """Receive one frame as text."""
        text: str = (await self.recv(flags)).decode(encoding)
        return text

    async def recv_json(self, flags: int = 0, **kwargs: Any) -> Any:
        """Receive one frame as JSON."""
        return jsonapi.loads(await self.recv(flags), **kwargs)

    async def recv_serialized(self, deserialize: Callable[[list[Any]], R], flags: int = 0, copy: bool = True) -> R:
        """Receive a message and return what ``deserialize(frames)`` makes of it."""
        return deserialize(await self.recv_multipart(flags, copy))

    async def poll(self, timeout: int | None = None, flags: int = zmq.POLLIN) -> int:
        """Wait up to ``timeout`` milliseconds until the socket is ready for one of ``flags``; return which, or 0."""

        def ready() -> int:
            events = int(self._socket.get(zmq.EVENTS)) & flags
            if not events:
                raise zmq.Again
            return events

        seconds = None if timeout is None or timeout < 0 else timeout / 1000
        with contextlib.suppress(zmq.Again):
            return ready()
        try:
            return await self._perform(ready, self._receivers if flags & _POLLIN else self._senders, seconds)
        except TimeoutError:
            return 0

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
        if not self._receivers:  # otherwise it would overtake those who wait
            try:
                return self._attempt(operation)
            except zmq.Again:
                if flags & _NOBLOCK:
                    raise
        try:
            return await self._perform(operation, self._receivers, self._limit(zmq.RCVTIMEO))
        except TimeoutError:
            raise self._socket.not_received() from None

    def _attempt(self, operation: Callable[[], R]) -> R:
        try:
            return operation()
        finally:
            self._rouse()  # the operation may have taken the edge that another task waits for

    def _rouse(self) -> None:
        if self._receivers or self._senders:
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
                    self._watch()
                    await waiter
                finally:
                    queue.remove(waiter)
                    self._rouse()  # cancelled after it was woken, the wake-up is the next one's
                with contextlib.suppress(zmq.Again):
                    return self._attempt(operation)

    def _watch(self) -> None:
        if self._watched is None:
            self._watched = int(self._socket.get(zmq.FD))
            self._loop.add_reader(self._watched, self._look)
        self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Wake the first of those who can go on."""
        if not self._receivers and not self._senders:
            return
        try:
            events = int(self._socket.get(zmq.EVENTS))
        except zmq.ZMQError:  # closed or terminated: each operation finds out by itself
            events = _POLLIN | _POLLOUT
        if events & _POLLIN:
            _wake_first(self._receivers)
        if events & _POLLOUT:
            _wake_first(self._senders)

    def release(self) -> LeanSocket:
        """End the watch; return the socket, which no task waits for any more."""
        if self._watched is not None:
            self._loop.remove_reader(self._watched)
            self._watched = None
        return self._socket


def _wake_first(queue: deque[asyncio.Future[None]]) -> None:
    for waiter in queue:
        if not waiter.done():
            waiter.set_result(None)
        return
