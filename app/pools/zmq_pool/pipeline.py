"""Many requests of one thread on one leased DEALER, several on the way at once."""

from __future__ import annotations

import time
from collections.abc import Iterable

import zmq

from app.pools.errors import UnexpectedReply
from app.pools.zmq_pool.connection import WINDOW
from app.pools.zmq_pool.sockets import LeanSocket


def pipeline(socket: LeanSocket, bodies: Iterable[bytes], timeout: float | None) -> list[bytes]:
    """Send each body as a request and return the replies in the same order.

    Args:
        socket: a DEALER, connected to a server that returns the envelope.
        bodies: the requests.
        timeout: seconds for all of it, or ``None`` for the socket's own limits.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    replies: dict[int, bytes] = {}
    sent = 0
    for body in bodies:
        while sent - len(replies) >= WINDOW or not _put(socket, sent, body, wait=sent == len(replies)):
            _take(socket, replies, deadline)
        sent += 1
    while len(replies) < sent:
        _take(socket, replies, deadline)
    return [replies[number] for number in range(sent)]


def _put(socket: LeanSocket, number: int, body: bytes, *, wait: bool) -> bool:
    """Send a request; without waiting if replies are due, because only reading them makes room."""
    try:
        socket.send_multipart((b"%d" % number, b"", body), 0 if wait else zmq.NOBLOCK)
    except zmq.Again:
        if wait:
            raise
        return False
    return True


def _take(socket: LeanSocket, replies: dict[int, bytes], deadline: float | None) -> None:
    """Receive one reply."""
    if deadline is not None:
        left = max(0.001, deadline - time.monotonic())
        socket.settle_timeouts(left, left)
    frames = socket.recv_multipart()
    if len(frames) != 3 or frames[1] or not frames[0].isdigit():
        raise UnexpectedReply(socket.config.endpoint)
    replies[int(frames[0])] = frames[2]
