"""Sentinels: whether an endpoint can be reached, learnt by watching a connection and sending nothing.

A monitor on every pooled socket would double the process's descriptors. So one socket per endpoint is watched;
it connects like the others, and neither sends nor is sent anything. A DEALER's is a REQ, to which no peer gives
messages unasked as it would to a DEALER. There is none for types whose peers hand messages to whoever connects
(PULL, REP, PAIR, ROUTER: their own sockets have witnesses), nor for ``inproc``, which has no connections to watch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import zmq

from app.pools.core import forks
from app.pools.errors import PoolClosed
from app.pools.zmq_pool.attendant import attendant
from app.pools.zmq_pool.config import HEARTBEAT, SocketConfig, SocketType
from app.pools.zmq_pool.opening import open_idle
from app.pools.zmq_pool.options import Options, OptionValue
from app.pools.zmq_pool.reachability import WATCHED, Reachability, read_events
from app.pools.zmq_pool.retries import Retry

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


class Sentinel:
    """Watches one endpoint. The attendant serves it.

    Args:
        context: the context to open sockets on.
        config: one that ``_watching`` returns.
    """

    def __init__(self, context: zmq.Context[Any], config: SocketConfig) -> None:
        self._endpoint = config.endpoint
        # Both, because sockets of its own type may be in use as well as those for which it stands in.
        secured = config.curve is not None
        self._retry = Retry(config)
        self._own_type = Reachability(self._retry, secured=secured)
        self._other_type = Reachability(self._retry, secured=secured, stands_in=True)
        self._socket, self._monitor = open_idle(context, config, WATCHED)

    @staticmethod
    def suits(config: SocketConfig) -> bool:
        """Say whether an endpoint can be watched without disturbing its peer."""
        return not config.bind and config.socket_type in _WATCHED_AS and not config.endpoint.startswith("inproc:")

    def seen_by(self, config: SocketConfig) -> Reachability:
        """Return what the sentinel's connection means for sockets of ``config``."""
        return self._own_type if _WATCHED_AS[config.socket_type] is config.socket_type else self._other_type

    def descriptor(self) -> int | None:
        """Return what to wait for."""
        return None if self._monitor.closed else int(self._monitor.get(zmq.FD))

    def attend(self) -> bool:
        """Take note of the events that are there, and try again where libzmq does not."""
        if self._monitor.closed:  # dismissed this moment
            return True
        read_events(self._monitor, self._own_type, self._other_type, self._retry)
        if time.monotonic() >= self._retry.due:
            self._retry.connect(self._socket, self._endpoint)
        attendant.serve_at(self, self._retry.due)
        return True

    def close(self) -> None:
        """Close the socket and its monitor. Called by the attendant, whose they are."""
        self._socket.close(0)


class User(Protocol):
    """Who has an endpoint watched."""

    @property
    def needs_watch(self) -> bool:
        """Whether anybody uses it."""

    def see(self, seen: Reachability | None) -> None:
        """Take what the endpoint's sentinel sees, or that there is none any more."""


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
        # Re-entrant: a signal's handler that comes while its thread holds it may lease, or stop the pool.
        self._lock = threading.RLock()
        self._all: dict[SocketConfig, Sentinel] = {}
        self._users: dict[SocketConfig, set[User]] = {}
        self._dismissed = False

    def join(self, config: SocketConfig, user: User) -> None:
        """Have ``user`` see what the sentinel of a configuration's endpoint does, if it can have one."""
        if not Sentinel.suits(config):
            return
        key = _watching(config)
        context = self._context()
        with self._lock:
            if self._dismissed:
                raise PoolClosed("zmq")
            sentinel = self._all.get(key) or self._add(Sentinel(context, key), key)
            self._users.setdefault(key, set()).add(user)
            attendant.watch(sentinel)  # a known one as well: an interrupt may have come in between
            user.see(sentinel.seen_by(config))

    def _add(self, made: Sentinel, key: SocketConfig) -> Sentinel:
        """Return the sentinel of ``key``, with the lock held: ``made``, or what a handler has made meanwhile."""
        sentinel = self._all.setdefault(key, made)
        # Looked at after it was added: a dismissal that comes between the two closes it.
        unneeded = sentinel is not made or (self._dismissed and self._all.pop(key, None) is made)
        if unneeded:
            made.close()
        if self._dismissed:
            raise PoolClosed("zmq")
        return sentinel

    def leave(self, config: SocketConfig, user: User) -> None:
        """Close the sentinel of a configuration's endpoint, if nobody uses it."""
        if not Sentinel.suits(config):
            return
        key = _watching(config)
        with self._lock:
            users = self._users.get(key, set())
            user.see(None)  # first: who begins to use it at this moment finds that, or is found by what comes next
            if user in users and user.needs_watch:
                user.see(self._all[key].seen_by(config))
                return
            users.discard(user)
            unneeded = None if users else self._all.pop(key, None)
            if not users:
                self._users.pop(key, None)
        if unneeded is not None:
            attendant.dismiss(unneeded)

    def dismiss(self) -> bool:
        """Close all of them, for good: a lease that is still being made when its pool stops gets none.

        Returns:
            whether they are closed, as ``Attendant.dismiss`` does.
        """
        with self._lock:
            self._dismissed = True
            sentinels, self._all, self._users = self._all, {}, {}
        closed = [attendant.dismiss(sentinel) for sentinel in sentinels.values()]
        return all(closed)

    def forget_after_fork(self) -> None:
        """Leave the parent's sockets alone."""
        forks.bury(self._all)
        self._lock = threading.RLock()
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
