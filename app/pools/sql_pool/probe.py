"""The socket below a database connection: whether it has something to say, and what ends it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
from collections.abc import Callable
from functools import partial

# PyDLL keeps the interpreter's lock: a question that never waits takes a third of a microsecond, less than giving
# the lock away and getting it back among threads, as the calls of `select` do.
_libc = ctypes.PyDLL(None)
_EVENT_BYTES = 16  # an epoll_event, at its largest


class _PollFD(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


class Probe:
    """Looks at the socket of an idle connection, and cuts it off.

    An idle database connection has nothing to read. If there is something, the server has closed it, or has
    sent a notice; only then the connection is worth a question.

    Args:
        descriptor: the socket's file descriptor; whoever closes the socket closes the probe before.
    """

    def __init__(self, descriptor: int) -> None:
        self.readable: Callable[[], object]
        """Says, truthy or not, whether there is something to read, an end or an error included."""
        self._descriptor = descriptor
        self._epoll = None
        if hasattr(select, "epoll"):
            # The kernel answers this one in two thirds of the time that it needs for poll().
            self._epoll = select.epoll(1)
            self._epoll.register(descriptor, select.EPOLLIN)
            events = ctypes.create_string_buffer(_EVENT_BYTES)
            self.readable = partial(_libc.epoll_wait, self._epoll.fileno(), ctypes.byref(events), 1, 0)
        else:
            watched = _PollFD(descriptor, select.POLLIN, 0)
            self.readable = partial(_libc.poll, ctypes.byref(watched), 1, 0)

    def cut(self) -> None:
        """Shut the socket down: whoever reads from it sees its end."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._descriptor)) as same:
            same.shutdown(socket.SHUT_RDWR)

    def sever(self) -> None:
        """Put nothing in the socket's place, for this process alone: another one that has it, too, goes on with it."""
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.dup2(nothing, self._descriptor, inheritable=False)
        finally:
            os.close(nothing)

    def close(self) -> None:
        """Look no more."""
        if self._epoll is not None:
            self._epoll.close()
