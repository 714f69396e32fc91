"""Whether an endpoint can be reached, as far as the events of one connection to it tell."""

from __future__ import annotations

import errno
import os
import struct
import time
from typing import Any

import zmq

from app.pools.zmq_pool.config import FOREVER
from app.pools.zmq_pool.retries import Retry

_FAILED = {
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "the handshake failed; with CURVE, the server's key may be another one",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "the handshake failed: the other side is no ZMQ peer of a fitting type",
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "the handshake failed: the server refused this client's key",
}
_MISFIT = _FAILED[int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)]

WATCHED = int(
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
"""The events from which it is told."""


class Reachability:
    """What the events of a connection say of its endpoint.

    Args:
        stands_in: whether the connection's type is not that of the sockets for whose sake it is watched: then a peer
            that does not take it may take them.
        retry: says whether libzmq has given the connection up.
        secured: whether the handshake may fail for the sake of a key.

    Attributes:
        up: whether the endpoint is connected; ``None`` until the first attempt has ended, and while it is not known.
        last_error: why it is not, or was not the last time.
        reconnects: how often the connection came back.
        misfit: whether somebody was there who does not take the connection's type.
    """

    def __init__(self, retry: Retry, *, stands_in: bool = False, secured: bool = False) -> None:
        self._retry = retry
        self._stands_in = stands_in
        self._secured = secured
        self.up: bool | None = None
        self.last_error = ""
        self.reconnects = 0
        self.misfit = False
        self._ever_up = False
        self._lost_at = -FOREVER
        self._refused = False  # by a handshake that failed, after which the connection is closed

    def note(self, event: int, value: int) -> None:
        """Take note of an event."""
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.reconnects += self._ever_up
            self._ever_up = True
            self.up = True
            self.misfit = False
        elif event == zmq.EVENT_DISCONNECTED:
            self._note_end()
        elif event in _FAILED:
            self._note_failure(event, value)
        elif event == zmq.EVENT_CONNECT_RETRIED and self.misfit:
            return  # after such a peer's refusal; where nobody listens, CLOSED comes first
        elif not self.up:  # CLOSED and CONNECT_RETRIED: an attempt came to nothing
            if self.misfit:
                self.misfit, self.last_error = False, ""
            self.last_error = self.last_error or "nobody listens there"
            self.up = False

    def _note_failure(self, event: int, value: int) -> None:
        self.last_error = _FAILED[event]
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            if value in errno.errorcode:
                self.last_error += f" ({os.strerror(value)})"
            if self._stands_in and not self._secured:
                return  # it may be for the type's sake that the peer ends the connection, which comes next
        self._refused = True
        self.up = False

    def _note_end(self) -> None:
        if self.up:
            self._lost_at = time.monotonic()
            self.last_error = "the connection was lost"
            self.up = False
        elif not self._refused:
            self.misfit = True
            self.last_error = _MISFIT
            # There is a peer: a DEALER, say, which takes a DEALER and not the REQ that stands in for it.
            self.up = None if self._stands_in else False
        self._refused = False

    def trouble(self) -> str:
        """Return why the endpoint is down, for an error; nothing if it is up or not known to be down."""
        return self.last_error if self.up is False else ""

    def loss(self, since: float = -FOREVER) -> str:
        """Return why nobody there can answer a request that was sent through another connection, if that is so.

        Nothing of a peer that took that one and not this: by now this one may be taken as well, and nobody has tried.
        Nor of what was lost before ``since`` (monotonic seconds), when the other connection's peer was heard of.
        """
        return "" if self._retry.given_up or self.misfit or self._lost_at < since else self.trouble()

    def figures(self) -> dict[str, Any]:
        """Return what is known of the endpoint."""
        return {"endpoint_up": self.up, "last_error": self.last_error, "reconnects": self.reconnects}


def read_events(monitor: zmq.Socket[bytes], *readers: Reachability | Retry) -> None:
    """Tell ``readers`` of the events that a monitor has for them."""
    while int(monitor.get(zmq.EVENTS)) & zmq.POLLIN:
        event, value = struct.unpack_from("=Hi", monitor.recv_multipart()[0])
        for reader in readers:
            reader.note(event, value)
