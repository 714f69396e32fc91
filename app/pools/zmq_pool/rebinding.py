"""``inproc`` endpoints that are bound anew: libzmq leaves whoever was connected to the socket before alone for ever.

Only the pools' own binds are known here, not those of an application's sockets on the pool's context.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import Protocol

import zmq

from app.pools.core import forks
from app.pools.zmq_pool.attendant import attendant
from app.pools.zmq_pool.config import SocketConfig


class Member(Protocol):
    """What has sockets connected to an ``inproc`` endpoint."""

    def rejoin(self) -> None:
        """Connect to whoever binds the endpoint next. Called by the attendant."""


class Rebinding:
    """Knows who is connected to which ``inproc`` endpoint. The attendant tells them of its socket's end."""

    def __init__(self) -> None:
        self._reset()
        forks.register(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._members: weakref.WeakKeyDictionary[Member, str] = weakref.WeakKeyDictionary()
        self._ended: set[str] = set()

    def join(self, config: SocketConfig, member: Member) -> None:
        """Have ``member`` told whenever the socket to which those of ``config`` connect has closed."""
        if not config.bind and config.endpoint.startswith("inproc:"):
            with self._lock:
                self._members[member] = config.endpoint

    def end(self, endpoint: str) -> None:
        """Have those told who are connected to ``endpoint``: its socket closes."""
        with self._lock:
            if endpoint not in self._members.values():
                return
            self._ended.add(endpoint)
        with contextlib.suppress(RuntimeError):  # this process ends, and begins no thread any more
            attendant.nudge(self)

    def descriptor(self) -> int | None:
        """Return nothing to wait for."""
        return None

    def attend(self) -> bool:
        """Tell them."""
        with self._lock:
            ended, self._ended = self._ended, set()
            concerned = [member for member, endpoint in list(self._members.items()) if endpoint in ended]
        for member in concerned:
            member.rejoin()
        return True

    def forget_after_fork(self) -> None:
        """Leave the parent's sockets alone."""
        self._reset()


rebinding = Rebinding()
"""The process's, as its context is."""


class InprocBind:
    """An ``inproc`` endpoint that a socket has bound."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    def end(self, socket: zmq.Socket[bytes]) -> None:
        """Have the endpoint left, and those know who are connected to it. Called before ``socket`` is closed."""
        with contextlib.suppress(zmq.ZMQError):  # left already, or the context was terminated
            zmq.Socket.unbind(socket, self._endpoint)  # or who connects now would be connected to what is ending
        rebinding.end(self._endpoint)
