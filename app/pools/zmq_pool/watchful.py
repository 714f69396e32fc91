"""What the sockets that ask have in common: they do not wait long for the reply of a server that is gone.

libzmq would wait for it until the time limit. So it is told a short one, and between two of them the endpoint's
sentinel is asked.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

import zmq

from app.pools.zmq_pool.backend import NOBLOCK, raw_get, raw_set
from app.pools.zmq_pool.config import FOREVER, milliseconds, seconds_of
from app.pools.zmq_pool.sockets import LeanSocket
from app.pools.zmq_pool.timeouts import ReplyLost
from app.pools.zmq_pool.trace import RETIMED

R = TypeVar("R")

_RCVTIMEO = int(zmq.RCVTIMEO)
_SNDTIMEO = int(zmq.SNDTIMEO)

LOOK_EVERY = 0.2
"""Seconds after which a receive that waits looks whether the endpoint is down."""


class WatchfulSocket(LeanSocket):
    """A REQ or DEALER: a receive fails as ``ReplyLost`` if the endpoint goes down before the reply comes."""

    _patience: float
    """How many seconds a receive may wait in all; 0 where libzmq keeps the limit, and nobody looks."""

    def be_watchful(self) -> None:
        """Have receives look, now and then, whether the endpoint is down."""
        if not self.config.bind and not self.config.endpoint.startswith("inproc:"):
            self._wait_at_most(seconds_of(raw_get(self, _RCVTIMEO)))

    @property
    def watchful(self) -> bool:
        """Whether a receive that waits is to ``look``."""
        return self._patience > LOOK_EVERY

    def _wait_at_most(self, seconds: float) -> None:
        self.__dict__["_patience"] = seconds
        raw_set(self, _RCVTIMEO, max(0, int(1000 * min(seconds, LOOK_EVERY))))

    def settle_timeouts(self, send: float, receive: float) -> None:
        """Set both time limits, in seconds, until the end of the lease."""
        if not self._patience:
            super().settle_timeouts(send, receive)
            return
        self._trace[0] |= RETIMED
        raw_set(self, _SNDTIMEO, milliseconds(send))
        self._wait_at_most(receive)

    def _restore_time_limits(self) -> None:
        super()._restore_time_limits()
        self.be_watchful()

    def set(self, option: int, optval: int | bytes) -> None:
        """Set an option, as ``zmq.Socket.set`` does; the socket is given up afterwards, time limits excepted."""
        super().set(option, optval)
        if option == _RCVTIMEO:
            self.__dict__["_patience"] = 0.0

    setsockopt = set

    def get(self, option: int) -> Any:
        """Return an option, as ``zmq.Socket.get`` does."""
        if option == _RCVTIMEO and self._patience:
            return -1 if self._patience == FOREVER else int(1000 * self._patience)
        return raw_get(self, option)

    getsockopt = get

    def connect(self, addr: str) -> Any:
        """Connect to one more peer, which may reply where the endpoint is down; the socket is given up afterwards."""
        self._leave_the_limit_to_libzmq()
        return super().connect(addr)

    @property
    def underlying(self) -> int:
        """The address of libzmq's socket, which may be used there unseen; the socket is given up afterwards."""
        self._leave_the_limit_to_libzmq()
        return super().underlying

    def _leave_the_limit_to_libzmq(self) -> None:
        if self._patience:
            self.set(_RCVTIMEO, self.get(_RCVTIMEO))

    def look(self, was_down: bool) -> bool:
        """Return whether the endpoint of a reply that is due is down.

        Raises:
            ReplyLost: it is, and was at the last look. Not at the first one, for the sentinel may have lost a
                connection that this socket has not, and get it back.
        """
        why = self.__dict__["mourn"]() if self._expects_reply() else ""
        if why and was_down:
            raise ReplyLost(self.config.endpoint, why)
        return bool(why)

    def _expects_reply(self) -> bool:
        return True

    def _try_longer(self, flags: int, again: zmq.Again, receive: Callable[[], R]) -> R:
        if flags & NOBLOCK or not self.watchful:
            raise self.not_received(flags, again) from None
        deadline = time.monotonic() - LOOK_EVERY + self._patience
        down = False
        try:
            while (left := deadline - time.monotonic()) > 0:
                raw_set(self, _RCVTIMEO, max(1, int(1000 * min(left, LOOK_EVERY))))
                with contextlib.suppress(zmq.Again):
                    return receive()
                down = self.look(down)
        finally:
            raw_set(self, _RCVTIMEO, int(1000 * LOOK_EVERY))
        raise self.not_received(flags, again) from None
