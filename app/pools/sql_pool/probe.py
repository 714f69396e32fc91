"""The socket below a database connection: whether it has something to say, and what ends it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
from collections.abc import Callable
from functools import partial

# PyDLL keeps the interpreter's lock: a question that never waits takes a third of a microsecond, less than giving
# the lock away and getting it back among threads, as the calls of `select` do.
_libc = ctypes.PyDLL(None)
# Asked after half a minute of silence, given up after another one; the last is in milliseconds.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}
_EVENT_BYTES = 16  # an epoll_event, at its largest


class _PollFD(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


class Probe:
    """Looks at the socket of an idle connection, and cuts it off.

    An idle database connection has nothing to read. If there is something, the server has closed it, or has
    sent a notice; only then the connection is worth a question.

    Args:
        descriptor: the socket's file descriptor. Its owner, the driver, may close it at any time, and the number may be
            another file's then, which is left alone.
    """

    def __init__(self, descriptor: int) -> None:
        self.readable: Callable[[], object]
        """Says, truthy or not, whether there is something to read, an end or an error included."""
        self._descriptor = descriptor
        self._identity = _identity(descriptor)
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
        with contextlib.suppress(OSError), self._same_socket() as same:
            same.shutdown(socket.SHUT_RDWR)

    def keep_alive(self) -> None:
        """Have the kernel ask a silent peer now and then, and end the connection when no answer comes.

        So a router in between does not forget an idle connection, and one whose peer has vanished is found out, also
        by a call without a deadline, which would otherwise wait for a quarter of an hour.
        """
        with contextlib.suppress(OSError), self._same_socket() as same:
            if same.family not in (socket.AF_INET, socket.AF_INET6):
                return
            same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEP_ALIVE.items():
                option = getattr(socket, name, None)  # not every system has each
                if option is not None:
                    same.setsockopt(socket.IPPROTO_TCP, option, value)

    def _same_socket(self) -> socket.socket:
        copy = os.dup(self._descriptor)
        if _identity(copy) != self._identity:  # asked of the copy, which nobody else closes meanwhile
            os.close(copy)
            raise OSError(errno.EBADF, "the socket was closed, and its number is another file's")
        return socket.socket(fileno=copy)

    def sever(self) -> None:
        """Put nothing in the socket's place, for this process alone: another one that has it, too, goes on with it.

        Called while the process has one thread, as a forked child has.
        """
        try:
            if _identity(self._descriptor) != self._identity:
                return
        except OSError:  # it is closed
            return
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.dup2(nothing, self._descriptor, inheritable=False)
        finally:
            os.close(nothing)

    def close(self) -> None:
        """Look no more."""
        if self._epoll is not None:
            self._epoll.close()


def _identity(descriptor: int) -> tuple[int, int]:
    """Return what tells an open file from every other one."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
