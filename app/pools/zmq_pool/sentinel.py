"""Sentinels: whether an endpoint can be reached, learnt by watching a connection and sending nothing.

A monitor on every pooled socket would double the process's descriptors. So one socket per endpoint is watched;
it connects like the others, and neither sends nor is sent anything. A DEALER's is a REQ, to which no peer gives
messages unasked as it would to a DEALER. There is none for types whose peers hand messages to whoever connects
(PULL, REP, PAIR, ROUTER), nor for ``inproc``, which has no connections to watch.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable
from typing import Any

import zmq

from app.pools.core import forks
from app.pools.errors import PoolClosed
from app.pools.zmq_pool.attendant import attendant
from app.pools.zmq_pool.config import HEARTBEAT, SocketConfig, SocketType
from app.pools.zmq_pool.opening import open_idle
from app.pools.zmq_pool.options import Options, OptionValue

_WATCHED_AS = {kind: kind for kind in (SocketType.REQ, SocketType.PUB, SocketType.SUB, SocketType.PUSH)}
_WATCHED_AS[SocketType.DEALER] = SocketType.REQ

# What says who connects, and by which way, and how it is found out that nobody is there. Nothing else: with its
# ROUTING_ID a ROUTER would take a sentinel for the socket that is to be answered.
_WATCHED_WITH = (
    "BINDTODEVICE",
    "CONNECT_TIMEOUT",
    "CURVE_",
    "GSSAPI_",
    "HANDSHAKE_IVL",
    "HEARTBEAT_",
    "IPV",
    "PLAIN_",
    "RECONNECT_",
    "SOCKS_",
    "TCP_",
    "TOS",
    "ZAP_DOMAIN",
)

_FAILED = {
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "the handshake failed; with CURVE, the server's key may be another one",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "the handshake failed: the other side is no ZMQ peer of a fitting type",
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "the handshake failed: the server refused this client's key",
}
_WATCHED = int(
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class Sentinel:
    """Watches one endpoint. The attendant serves it.

    Args:
        context: the context to open sockets on.
        config: one that ``_watching`` returns.
        stands_in: whether its type is not that of the sockets for whose sake the endpoint is watched.

    Attributes:
        up: whether the endpoint is connected; ``None`` until the first attempt has ended.
        last_error: why it is not, or was not the last time.
        reconnects: how often the connection came back.
    """

    def __init__(self, context: zmq.Context[Any], config: SocketConfig, *, stands_in: bool) -> None:
        self._stands_in = stands_in
        self.up: bool | None = None
        self.last_error = ""
        self.reconnects = 0
        self._ever_up = False
        self._misfit = False
        self._socket, self._monitor = open_idle(context, config, _WATCHED)

    @staticmethod
    def suits(config: SocketConfig) -> bool:
        """Say whether an endpoint can be watched without disturbing its peer."""
        return not config.bind and config.socket_type in _WATCHED_AS and not config.endpoint.startswith("inproc:")

    def descriptor(self) -> int | None:
        """Return what to wait for."""
        return int(self._monitor.get(zmq.FD))

    def attend(self) -> bool:
        """Take note of the events that are there."""
        while int(self._monitor.get(zmq.EVENTS)) & zmq.POLLIN:
            event, value = struct.unpack_from("=Hi", self._monitor.recv_multipart()[0])
            self._note(event, value)
        return True

    def _note(self, event: int, value: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.reconnects += self._ever_up
            self._ever_up = True
            self.up = True
        elif event == zmq.EVENT_DISCONNECTED and self._stands_in and not self.up:
            self.up = None  # there is a peer: a DEALER, say, which takes a DEALER and not the REQ that stands in for it
            self._misfit = True
        elif event == zmq.EVENT_DISCONNECTED:
            if self.up:
                self.last_error = "the connection was lost"
            self.up = False
        elif event in _FAILED:
            self.last_error = _FAILED[event]
            if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and value and value in errno.errorcode:
                self.last_error += f" ({os.strerror(value)})"
            self.up = False
        elif event == zmq.EVENT_CONNECT_RETRIED and self._misfit:
            return  # after such a peer's refusal; where nobody listens, CLOSED comes first
        elif not self.up:  # CLOSED and CONNECT_RETRIED: an attempt came to nothing
            self._misfit = False
            self.last_error = self.last_error or "nobody listens there"
            self.up = False

    def trouble(self) -> str:
        """Return why the endpoint is down, for an error; nothing if it is up or not known to be down."""
        return self.last_error if self.up is False else ""

    def figures(self) -> dict[str, Any]:
        """Return what is known of the endpoint."""
        return {"endpoint_up": self.up, "last_error": self.last_error, "reconnects": self.reconnects}

    def close(self) -> None:
        """Close both sockets. Called by the attendant, whose they are."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)


class Sentinels:
    """The sentinels of a pool: one for each endpoint, however many configurations lead there, while any is in use.

    Those that differ in who they are (keys, credentials, a proxy) have sentinels of their own, because one may be
    refused where the other is not, and those that differ in their heartbeats, because one may count a peer as lost
    where the other is to wait.

    Args:
        context: returns the context to open sockets on.
    """

    def __init__(self, context: Callable[[], zmq.Context[Any]]) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._all: dict[SocketConfig, Sentinel] = {}
        self._users: dict[SocketConfig, set[object]] = {}
        self._dismissed = False

    def of(self, config: SocketConfig, user: object) -> Sentinel | None:
        """Return the sentinel of a configuration's endpoint, for ``user`` until it leaves.

        Returns:
            ``None`` for an endpoint that cannot be watched.
        """
        if not Sentinel.suits(config):
            return None
        key = _watching(config)
        context = self._context()
        with self._lock:
            if self._dismissed:
                raise PoolClosed("zmq")
            sentinel = self._all.get(key)
            if sentinel is None:
                sentinel = self._all[key] = Sentinel(context, key, stands_in=config.socket_type is not key.socket_type)
            self._users.setdefault(key, set()).add(user)
            attendant.watch(sentinel)  # a known one as well: an interrupt may have come in between
            return sentinel

    def leave(self, config: SocketConfig, user: object) -> None:
        """Close the sentinel of a configuration's endpoint, if it has no other user."""
        if not Sentinel.suits(config):
            return
        key = _watching(config)
        with self._lock:
            users = self._users.get(key, set())
            users.discard(user)
            unneeded = None if users else self._all.pop(key, None)
            if not users:
                self._users.pop(key, None)
        if unneeded is not None:
            attendant.dismiss(unneeded)

    def dismiss(self) -> None:
        """Close all of them, for good: a lease that is still being made when its pool stops gets none."""
        with self._lock:
            self._dismissed = True
            sentinels, self._all, self._users = self._all, {}, {}
        for sentinel in sentinels.values():
            attendant.dismiss(sentinel)

    def forget_after_fork(self) -> None:
        """Leave the parent's sockets alone."""
        forks.bury(self._all)
        self._lock = threading.Lock()
        self._all, self._users = {}, {}
        self._dismissed = False  # by a stop that another thread of the parent was at


def _watching(config: SocketConfig) -> SocketConfig:
    """Return the configuration of the sentinel for one: equal for all that can share it."""
    options: dict[str | int, OptionValue] = {
        name: value for name, value in Options(config.options).items() if name.startswith(_WATCHED_WITH)
    }
    return SocketConfig(
        _WATCHED_AS[config.socket_type],
        config.endpoint,
        options=options,
        # Its heartbeats harm nobody: it has no messages that they could be late behind.
        heartbeat=HEARTBEAT if config.heartbeat is None else config.heartbeat,
        curve=config.curve,
        allow_plaintext=True,  # if it must be asked for, it was
    )
