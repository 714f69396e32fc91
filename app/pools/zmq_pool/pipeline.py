"""Many requests of one thread on one leased DEALER, several on the way at once."""

from __future__ import annotations

import time
from collections.abc import Iterable

import zmq

from app.pools.errors import NotSent, UnexpectedReply
from app.pools.zmq_pool.config import SocketConfig
from app.pools.zmq_pool.connection import WINDOW
from app.pools.zmq_pool.sockets import LeanSocket


def pipeline(socket: LeanSocket, bodies: Iterable[bytes], deadline: float | None) -> list[bytes]:
    """Send each body as a request and return the replies in the same order.

    Args:
        socket: a DEALER, connected to a server that returns the envelope.
        bodies: the requests.
        deadline: when all of it is to be over (monotonic seconds), or ``None`` for the socket's own limits.
    """
    waiting: set[bytes] = set()
    replies: dict[bytes, bytes] = {}
    numbers: list[bytes] = []
    for body in bodies:
        number = b"%d" % len(numbers)
        while len(waiting) >= WINDOW or not _put(socket, number, body, deadline, wait=not waiting):
            _take(socket, waiting, replies, deadline)
        waiting.add(number)
        numbers.append(number)
    while waiting:
        _take(socket, waiting, replies, deadline)
    return [replies[number] for number in numbers]


def seconds_left(config: SocketConfig, deadline: float) -> float:
    """Return what is left until ``deadline`` (monotonic seconds) for one more request.

    Raises:
        NotSent: nothing is left.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise NotSent(f"{config.label}: the time for all requests was over before this one. Sending it again is safe")
    return left


def _put(socket: LeanSocket, number: bytes, body: bytes, deadline: float | None, *, wait: bool) -> bool:
    """Send a request; without waiting if replies are due, because only reading them makes room."""
    if deadline is not None:
        left = seconds_left(socket.config, deadline)
        if wait:
            socket.settle_timeouts(min(left, socket.config.send_timeout), left)
    try:
        socket.send_multipart((number, b"", body), 0 if wait else zmq.NOBLOCK)
    except zmq.Again:
        if wait:
            raise
        return False
    return True


def _take(socket: LeanSocket, waiting: set[bytes], replies: dict[bytes, bytes], deadline: float | None) -> None:
    """Receive one reply."""
    if deadline is not None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise socket.not_received()
        socket.settle_timeouts(left, left)
    frames = socket.recv_multipart()
    number = frames[0]
    if len(frames) != 3 or frames[1] or (number not in waiting and number not in replies):
        raise UnexpectedReply(socket.config.endpoint)
    waiting.discard(number)
    replies[number] = frames[2]
