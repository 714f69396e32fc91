"""What a socket is: its type, where it binds or connects, and everything that makes one different from another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

import zmq

from app.pools.core.booleans import require_booleans
from app.pools.core.keys import pickled_by_fields
from app.pools.errors import ConfigError
from app.pools.zmq_pool import endpoints
from app.pools.zmq_pool.curve import CurveClient, CurveServer, curve_from
from app.pools.zmq_pool.options import Options, OptionValue

FOREVER = math.inf
_MOST_MS = 2**31 - 1
"""What libzmq takes as a time, which is 24 days."""


class SocketType(Enum):
    """The ZMQ socket types that the pool leases."""

    REQ = zmq.REQ
    REP = zmq.REP
    PUB = zmq.PUB
    SUB = zmq.SUB
    PUSH = zmq.PUSH
    PULL = zmq.PULL
    PAIR = zmq.PAIR
    DEALER = zmq.DEALER
    ROUTER = zmq.ROUTER


ASKING = frozenset({SocketType.REQ, SocketType.DEALER})
SENDING = frozenset({SocketType.PUB, SocketType.PUSH})
ONE_WAY = SENDING | {SocketType.SUB, SocketType.PULL}
"""Types whose messages nobody answers. A receiver that is busy for a while with its queue full does not read heartbeats
either, on neither side: they would take it for dead, and drop the connection with all that is on the way."""

HEARTBEAT = 1.0
"""Seconds between two heartbeats, where they do no harm."""

_KEEPALIVE: dict[str, OptionValue] = {
    "TCP_KEEPALIVE": 1,
    "TCP_KEEPALIVE_IDLE": 15,
    "TCP_KEEPALIVE_INTVL": 5,
    "TCP_KEEPALIVE_CNT": 3,
}
"""The kernel's own question whether the other machine is there, after 15 s without a sign, given up after 30 s."""


@dataclass(frozen=True, eq=True)
class SocketConfig:
    """The key under which sockets are pooled: two configurations that are equal share their sockets.

    Args:
        socket_type: the type, or its name.
        endpoint: a ``tcp://``, ``ipc://`` or ``inproc://`` address.
        bind: whether to bind the endpoint; otherwise the socket connects to it.
        options: libzmq socket options by name (``"RCVHWM"``) or constant (``zmq.RCVHWM``). Times are
            milliseconds, as in libzmq. A ``ROUTING_ID`` is one socket's name, so it needs ``max_connections=1``.
        topics: what a SUB subscribes to, by prefix; ``""`` is everything. Nothing unless given.
        send_timeout: seconds that a send may wait for a connection or for room, ``math.inf`` for ever.
        receive_timeout: seconds that a receive may wait, ``math.inf`` for ever. By default 10 for REQ and
            DEALER, which wait for an answer, and for ever for the others, which wait for work.
        heartbeat: seconds between two heartbeats on an idle connection; 0 turns them off. A peer that does not
            answer within twice that time counts as lost, also if a long message is on the way meanwhile. By default 1,
            and a peer has ``receive_timeout`` to answer; none for PUB, PUSH, SUB and PULL, whose slow
            receivers would lose what is on the way. There, and
            by default, TCP's keepalive finds machines that are gone.
        linger: seconds for which a closed socket still tries to deliver; 0 for REQ, whose requests nobody
            waits for any more, and 2 for the others.
        max_connections: sockets of this configuration, at most; by default ``ZMQ_POOL_MAX_CONNECTIONS``. Whatever
            binds has one socket, and so do PUB and PUSH, through which all send.
        backlog: messages that PUB and PUSH keep while they cannot be sent, before publishing waits; for REQ, requests
            of ``request_async`` that wait to be sent, before the next one is ``NotSent``.
        subscriber_wait: seconds for which a new PUB keeps its messages until the first subscriber is there.
        multiplexed: whether asyncio requests share a connection. That needs a server that returns the envelope,
            as REP and brokers do, and a ROUTER that does not count on exactly one frame before the empty one;
            without it each request leases a REQ.
        curve: encryption and identity: ``CurveClient`` for a socket that connects, ``CurveServer`` for one that
            binds. A configuration file gives a table of key files instead: ``server`` and ``keys``, or ``keys`` and
            ``allowed``.
        allow_plaintext: permits an endpoint that other machines can reach without encryption.
        leak_threshold: seconds after which a lease that is still out is logged once, with the place of its checkout; 0
            is never. By default ``ZMQ_POOL_LEAK_THRESHOLD`` for a REQ or DEALER that connects, and for PUB and PUSH,
            whose leases hold others up, and never for what a service holds for as long as it listens.

    Raises:
        ConfigError: a value is not allowed. The message names it and what is.
    """

    socket_type: SocketType
    endpoint: str
    bind: bool = False
    options: Mapping[str | int, int | bool | bytes | str] | None = None
    topics: Iterable[str | bytes] = ()
    send_timeout: float = 5.0
    receive_timeout: float | None = None
    heartbeat: float | None = None
    linger: float | None = None
    max_connections: int | None = None
    backlog: int = 10_000
    subscriber_wait: float = 1.0
    multiplexed: bool = True
    curve: CurveClient | CurveServer | Mapping[str, object] | None = None
    allow_plaintext: bool = False
    leak_threshold: float | None = None
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kind = self._checked_type()
        self._settle("socket_type", kind)
        self._check_values()
        where = endpoints.parse(self.endpoint, bind=self.bind)
        self._settle("options", Options(self.options))
        self._settle("topics", self._checked_topics(kind))
        if self.receive_timeout is None:
            self._settle("receive_timeout", 10.0 if kind in ASKING else FOREVER)
        if self.linger is None:
            self._settle("linger", 0.0 if kind is SocketType.REQ else 2.0)
        if isinstance(self.curve, Mapping):
            self._settle("curve", curve_from(self.curve, bind=self.bind))
        self._check_count(kind)
        self._check_name(kind)
        self._check_linger(kind)
        self._check_secrecy(where)
        # Computed once: the pool looks its configurations up on every checkout.
        self._settle("_hash", hash(tuple(getattr(self, f.name) for f in fields(self) if f.compare)))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return pickled_by_fields(self)

    @property
    def label(self) -> str:
        """The name of this configuration in errors and statistics."""
        return f"{self.socket_type.name} {self.endpoint}{' (bound)' if self.bind else ''}"

    def libzmq_options(self) -> dict[str, OptionValue]:
        """Return every option that a socket of this configuration gets, by libzmq's name."""
        effective: dict[str, OptionValue] = {
            "LINGER": milliseconds(self.linger or 0.0),
            "SNDTIMEO": milliseconds(self.send_timeout),
            "RCVTIMEO": milliseconds(FOREVER if self.receive_timeout is None else self.receive_timeout),
            # A restarted peer is met again within 20 ms; a dead one is not pestered more than once a second.
            "RECONNECT_IVL": 10,
            "RECONNECT_IVL_MAX": 1000,
        }
        if endpoints.parse(self.endpoint, bind=self.bind).ipv6:
            effective["IPV6"] = 1
        if not self.bind:
            # Without a connection a send fails instead of queueing for a peer that may never come: NotSent.
            effective["IMMEDIATE"] = 1
        if self.socket_type is SocketType.PUB:
            # A full queue is seen, and waited for a while, instead of dropping in silence.
            effective["XPUB_NODROP"] = 1
        effective.update(self._signs_of_life())
        if isinstance(self.curve, CurveClient | CurveServer):
            effective.update(self.curve.options())
        effective.update(Options(self.options) if not isinstance(self.options, Options) else self.options)
        return effective

    def _signs_of_life(self) -> dict[str, OptionValue]:
        """Return the options by which a peer that is gone is noticed."""
        if self.heartbeat:
            return {
                "HEARTBEAT_IVL": milliseconds(self.heartbeat),
                "HEARTBEAT_TIMEOUT": milliseconds(2 * self.heartbeat),
            }
        if self.heartbeat == 0 or self.socket_type in ONE_WAY:
            return _KEEPALIVE
        # The answer to a heartbeat comes behind a message that is being transferred, however long that takes.
        patience = max(2 * HEARTBEAT, min(self.receive_timeout or 0.0, _MOST_MS / 1000))
        return {"HEARTBEAT_IVL": milliseconds(HEARTBEAT), "HEARTBEAT_TIMEOUT": milliseconds(patience), **_KEEPALIVE}

    def _settle(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _checked_type(self) -> SocketType:
        kind: object = self.socket_type
        if isinstance(kind, SocketType):
            return kind
        name = str(kind).upper()
        if name not in SocketType.__members__:
            raise ConfigError(f"{kind!r} is not one of {', '.join(SocketType.__members__)}")
        return SocketType[name]

    def _checked_topics(self, kind: SocketType) -> tuple[bytes, ...]:
        if isinstance(self.topics, str | bytes) or not isinstance(self.topics, Iterable):
            raise ConfigError(f"topics takes a list of prefixes; for one, write topics=[{self.topics!r}]")
        topics = tuple(_topic(topic) for topic in self.topics)
        if topics and kind is not SocketType.SUB:
            raise ConfigError(f"only SUB sockets have topics, not {kind.name}")
        return topics

    def _check_values(self) -> None:
        require_booleans(self)
        for name in ("send_timeout", "receive_timeout", "heartbeat", "linger", "subscriber_wait", "leak_threshold"):
            if not self._is_number(name, (int, float), least=0):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} of {self.label} is not a number of seconds from 0 up"
                )
        for name in ("backlog", "max_connections"):
            if not self._is_number(name, (int,), least=1):
                raise ConfigError(f"{name}={getattr(self, name)!r} of {self.label} is not a count from 1 up")

    def _is_number(self, name: str, kinds: tuple[type[float], ...], least: int) -> bool:
        value = getattr(self, name)
        if value is None:
            return getattr(SocketConfig, name) is None  # the default
        return isinstance(value, kinds) and not isinstance(value, bool) and value >= least

    def _check_linger(self, kind: SocketType) -> None:
        linger = _linger_seconds(self)
        if not 0 <= linger < FOREVER:
            raise ConfigError(f"the linger of {self.label} is unbounded: stopping the pool could wait for ever")
        if kind in SENDING and not linger:
            raise ConfigError(f"a linger of 0 makes {self.label} drop what it has just accepted; use a time above 0")

    def _check_count(self, kind: SocketType) -> None:
        """Refuse several sockets where there is one, whoever uses it."""
        if self.max_connections in (None, 1) or not (self.bind or kind in SENDING):
            return
        reason = "a bound endpoint has one socket" if self.bind else "all threads and tasks send through one socket"
        raise ConfigError(
            f"max_connections={self.max_connections} of {self.label} would have no effect: {reason}; leave it out"
        )

    def _check_name(self, kind: SocketType) -> None:
        """Refuse a name for several sockets: a ROUTER answers only one connection of a name, and drops the others."""
        several = not self.bind and kind not in SENDING and self.max_connections != 1
        if several and "ROUTING_ID" in (self.options or {}):
            raise ConfigError(
                f"the option ROUTING_ID would give every socket of {self.label} the same name, and a ROUTER answers "
                f"only one connection of a name; give max_connections=1 as well"
            )

    def _check_secrecy(self, where: endpoints.Endpoint) -> None:
        fitting = CurveServer if self.bind else CurveClient
        if self.curve is not None and not isinstance(self.curve, fitting):
            raise ConfigError(
                f"{self.label} {'binds' if self.bind else 'connects'}, so its curve= must be a {fitting.__name__}"
            )
        if not where.local and self.curve is None and not self.allow_plaintext:
            key = "CurveServer(KeyPair.load(...))" if self.bind else "CurveClient(server_key)"
            raise ConfigError(
                f"{self.label} would speak plaintext with other machines. Make keys with `poolwire keys new NAME` "
                f"and give curve={key}, or give allow_plaintext=True if the network is trusted"
            )


def _topic(topic: object) -> bytes:
    if isinstance(topic, bytes):
        return topic
    if isinstance(topic, str):
        return topic.encode()
    raise ConfigError(f"a topic is bytes or str, not {type(topic).__name__}: {topic!r}")


def _linger_seconds(config: SocketConfig) -> float:
    options = config.options or {}
    if "LINGER" in options:
        return seconds_of(options["LINGER"])
    return config.linger or 0.0


def milliseconds(seconds: float) -> int:
    """Return ``seconds`` as libzmq takes a time, at most the longest one there is; -1 is for ever."""
    if seconds >= _MOST_MS / 1000:
        return -1 if seconds == FOREVER else _MOST_MS
    return max(0, round(seconds * 1000))


def seconds_of(option: object) -> float:
    """Return a time as libzmq has it in seconds."""
    assert isinstance(option, int)
    return FOREVER if option < 0 else option / 1000
