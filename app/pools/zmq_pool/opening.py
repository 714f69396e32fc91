"""Opening sockets: made, set up, subscribed, and connected or bound as their configuration says."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import zmq

from app.pools.errors import ConfigError, EndpointBusy
from app.pools.zmq_pool.asking import DealerSocket, RequestSocket
from app.pools.zmq_pool.attempts import out_of_descriptors
from app.pools.zmq_pool.backend import raw_set
from app.pools.zmq_pool.claims import Claim
from app.pools.zmq_pool.config import SocketConfig, SocketType
from app.pools.zmq_pool.endpoints import check_folder
from app.pools.zmq_pool.monitors import end_monitor, open_monitor
from app.pools.zmq_pool.options import Options, OptionValue
from app.pools.zmq_pool.owner import owner_checked
from app.pools.zmq_pool.rebinding import InprocBind
from app.pools.zmq_pool.sockets import LeanSocket, ReplySocket
from app.pools.zmq_pool.watchful import WatchfulSocket

_CLASSES: dict[SocketType, type[LeanSocket]] = {
    SocketType.REQ: RequestSocket,
    SocketType.REP: ReplySocket,
    SocketType.DEALER: DealerSocket,
}
_FOR_REQS = frozenset({"CONNECT_ROUTING_ID", "REQ_CORRELATE", "REQ_RELAXED", "ROUTING_ID"})
_PLAIN: list[type[LeanSocket]] = [LeanSocket, *_CLASSES.values()]
_OWNER_CHECKED = {made: owner_checked(made) for made in _PLAIN}


class MonitoredSocket(LeanSocket):
    """A socket whose monitor ends with it, also when both are dropped: for a monitor that nobody reads any more
    libzmq's one thread waits for ever, and with it every socket of the process."""

    def close(self, linger: int | None = None) -> None:
        """Close the socket, after its monitor."""
        reader = self.__dict__.pop("_reader", None)
        if reader is not None:
            with contextlib.suppress(zmq.ContextTerminated):
                end_monitor(self)
            reader.close(0)
        super().close(linger)


def open_socket(
    context: zmq.Context[Any],
    config: SocketConfig,
    *,
    check_owner: bool = False,
    prepare: Callable[[LeanSocket], None] = lambda _: None,
) -> LeanSocket:
    """Return a new socket, set up, subscribed, and connected or bound.

    A PUB is made as XPUB, which is the same to its peers and can say when the first subscriber is there.

    Args:
        context: the context to open it on.
        config: what it is.
        check_owner: whether its uses by another thread than its lessee's are errors.
        prepare: what to do with it first.

    Raises:
        ConfigError: libzmq does not accept an option's value or the endpoint.
        EndpointBusy: the endpoint to bind is taken.
    """
    kind = zmq.XPUB if config.socket_type is SocketType.PUB else config.socket_type.value
    made = _CLASSES.get(config.socket_type, LeanSocket)
    if check_owner:
        made = _OWNER_CHECKED[made]
    socket = made(context, kind, config)
    try:
        prepare(socket)
    except BaseException:
        socket.close(0)
        raise
    return _set_up(socket, config)


def open_dealer(
    context: zmq.Context[Any], config: SocketConfig, events: int
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Return a DEALER set up and connected as the REQ of ``config`` would be, and a monitor of its ``events``."""
    config = replace(config, options=options_beside(config))
    return _open_monitored(context, zmq.DEALER, config, events)


def options_beside(config: SocketConfig) -> dict[str | int, OptionValue]:
    """Return the options for a DEALER that is connected beside the REQs of ``config``.

    To a ROUTER a name is one connection's, which is the one of a REQ; and some options are for REQs alone.
    """
    return {name: value for name, value in Options(config.options).items() if name not in _FOR_REQS}


def open_idle(
    context: zmq.Context[Any], config: SocketConfig, events: int
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Return a socket connected like those of ``config`` that nobody is to use, and a monitor of its ``events``."""
    assert not config.topics  # or a SUB would be sent messages, and hold up those who send them
    return _open_monitored(context, config.socket_type.value, config, events)


def _open_monitored(
    context: zmq.Context[Any], kind: int, config: SocketConfig, events: int
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    socket = MonitoredSocket(context, kind, config)
    try:
        monitor = socket.__dict__["_reader"] = open_monitor(socket, events)
        return _set_up(socket, config), monitor
    except BaseException:
        socket.close(0)
        raise


def _set_up(socket: LeanSocket, config: SocketConfig) -> LeanSocket:
    try:
        _set_options(socket, config)
        if config.bind:
            _bind(socket, config)
        else:
            _connect(socket, config)
    except BaseException:
        socket.close(0)
        raise
    socket._trace[0] = 0
    if isinstance(socket, WatchfulSocket):
        socket.be_watchful()
    return socket


def _set_options(socket: LeanSocket, config: SocketConfig) -> None:
    for name, value in config.libzmq_options().items():
        if name == "XPUB_NODROP" and socket.type != zmq.XPUB:
            continue
        try:
            raw_set(socket, zmq.SocketOption[name], value)
        except zmq.ZMQError as error:
            shown = value if isinstance(value, int) else f"{len(value)} bytes"
            raise ConfigError(f"libzmq does not take {name}={shown} for {config.label}: {error.strerror}") from None
    for topic in config.topics:
        raw_set(socket, zmq.SUBSCRIBE, topic)


def _connect(socket: LeanSocket, config: SocketConfig) -> None:
    try:
        socket.connect(config.endpoint)
    except zmq.ZMQError as error:
        if out_of_descriptors(error):
            raise
        raise ConfigError(f"libzmq cannot connect {config.label}: {error.strerror}") from None


def _bind(socket: LeanSocket, config: SocketConfig) -> None:
    path = _ipc_path(config)
    if path is not None:
        check_folder(path.parent)
        socket.__dict__["_claim"] = Claim(path)
    try:
        socket.bind(config.endpoint)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise EndpointBusy(
                f"{config.label}: the endpoint is bound already, by another configuration or another process. "
                f"End it, or bind another endpoint"
            ) from None
        if out_of_descriptors(error):
            raise
        raise ConfigError(f"libzmq cannot bind {config.label}: {error.strerror}") from None
    if config.endpoint.startswith("inproc:"):
        socket.__dict__["_inproc_bind"] = InprocBind(config.endpoint)
    if path is not None:
        os.chmod(path, 0o600)  # libzmq leaves it to the umask


def _ipc_path(config: SocketConfig) -> Path | None:
    transport, _, address = config.endpoint.partition("://")
    if transport != "ipc" or address.startswith("@") or address == "*":
        return None
    return Path(address)
