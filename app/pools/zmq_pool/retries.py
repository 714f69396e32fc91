"""Connections that libzmq gives up: when to connect again."""

from __future__ import annotations

import contextlib
import time

import zmq

from app.pools.zmq_pool.config import FOREVER, SocketConfig

_FIRST = 1.0
_LAST = 8.0


class Retry:
    """Tells from the events of a connection whether libzmq has given it up, and when to connect anew.

    libzmq does so, for good, after a handshake that came to nothing (the peer is of another type, refuses the key, or
    encrypts where this side does not) and after a message that it does not take. The end of the connection is then the
    last that it reports, where otherwise another attempt follows.

    Args:
        config: of the socket. What is not to connect again by itself (``RECONNECT_IVL=-1``) is not made to here.

    Attributes:
        given_up: whether libzmq has, as far as it is known.
        due: when to connect anew, in monotonic seconds: soon at first, and then ever less often.
    """

    def __init__(self, config: SocketConfig) -> None:
        interval = config.libzmq_options()["RECONNECT_IVL"]
        self._wanted = isinstance(interval, int) and interval > 0
        self._after = _FIRST
        self.given_up = False
        self.due = FOREVER

    def note(self, event: int, _value: int = 0) -> None:
        """Take note of an event."""
        if event == zmq.EVENT_DISCONNECTED:
            self.given_up = True
            self.due = time.monotonic() + self._after if self._wanted else FOREVER
        elif event in (zmq.EVENT_CONNECT_RETRIED, zmq.EVENT_HANDSHAKE_SUCCEEDED):
            self.given_up = False
            self.due = FOREVER
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._after = _FIRST

    def put_off(self) -> None:
        """Have it tried later, because the socket is somebody else's at the moment."""
        self.due = time.monotonic() + self._after

    def connect(self, socket: zmq.Socket[bytes], endpoint: str) -> None:
        """Connect ``socket`` anew."""
        self.due = FOREVER
        self._after = min(2 * self._after, _LAST)
        connect_anew(socket, endpoint)


def connect_anew(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Leave a socket's connection to ``endpoint``, whatever its state, and begin another one."""
    with contextlib.suppress(zmq.ZMQError):  # libzmq may have forgotten it
        zmq.Socket.disconnect(socket, endpoint)
    zmq.Socket.connect(socket, endpoint)
