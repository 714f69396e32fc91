"""libzmq's calls as pyzmq compiles them, without the Python layer above, which costs more than they do."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import zmq
import zmq.backend
from zmq.backend import Socket

raw_send: Any = Socket.send
raw_recv: Any = Socket.recv
raw_get: Any = Socket.get
raw_set: Any = Socket.set
"""Below a leased socket's own ``set``, which takes note of changes."""

# As plain numbers: combining the members of an enumeration costs more than a send.
NOBLOCK = int(zmq.NOBLOCK)
SNDMORE = int(zmq.SNDMORE)
NOBLOCK_SNDMORE = NOBLOCK | SNDMORE
RCVMORE = int(zmq.RCVMORE)
EVENTS = int(zmq.EVENTS)
POLLIN = int(zmq.POLLIN)
POLLOUT = int(zmq.POLLOUT)


class _Sizes(dict[int, ctypes.c_size_t]):
    """Lengths as C has them, made once each: ctypes would pass a Python number as an ``int``, which is shorter."""

    def __missing__(self, length: int) -> ctypes.c_size_t:
        size = self[length] = ctypes.c_size_t(length)
        return size


SMALL = 4096
"""Bytes up to which ``send_now`` may send a frame: copying it must not hold up the other threads."""
sizes = _Sizes()


def _send_now() -> Any:
    """Find libzmq's ``zmq_send`` where pyzmq has it, to be called without letting go of the interpreter's lock.

    pyzmq lets go of it for each send, although one that does not wait is over within a microsecond or two. Getting
    the lock back means queueing behind every other thread: with 32 of them a request took 1.3 times as long.
    """
    compiled = sys.modules.get(getattr(Socket, "__module__", ""))
    try:
        send = ctypes.PyDLL(compiled.__file__).zmq_send  # type: ignore[union-attr]
    except (AttributeError, OSError, TypeError):  # another build of pyzmq, or a platform that does not show the name
        return lambda *_: -1
    send.restype = ctypes.c_int
    return send


send_now = _send_now()
"""``send_now(address, frame, sizes[len(frame)], flags)`` with ``NOBLOCK`` among the flags: 0 or more if ``frame``
(``bytes``, at most ``SMALL``) was sent. If not, nothing happened, and ``raw_send`` will wait or say why."""
