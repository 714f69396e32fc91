"""libzmq's calls as pyzmq compiles them, without the Python layer above, which costs more than they do."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import zmq
import zmq.backend
from zmq.backend import Socket

raw_send: Any = Socket.send
raw_recv: Any = Socket.recv
raw_get: Any = Socket.get
raw_set: Any = Socket.set
"""Below a leased socket's own ``set``, which takes note of changes."""
raw_address: Callable[[Any], int] = Socket.underlying.__get__
"""Below a leased socket's own ``underlying``, likewise."""

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


def _without_yielding(name: str) -> Any:
    """Find a function of libzmq where pyzmq has it, to be called without letting go of the interpreter's lock.

    pyzmq lets go of it for each send, and for each frame that it frees, although what does not wait is over within a
    microsecond or two. Getting the lock back means queueing behind every other thread: with 32 of them a request took
    1.3 times as long.

    Returns:
        the function, or ``None`` in another build of pyzmq, or on a platform that does not show the name.
    """
    compiled = sys.modules.get(getattr(Socket, "__module__", ""))
    try:
        function = ctypes.PyDLL(compiled.__file__)[name]  # type: ignore[union-attr]
    except (AttributeError, OSError, TypeError):
        return None
    function.restype = ctypes.c_int
    return function


send_now = _without_yielding("zmq_send") or (lambda *_: -1)
"""``send_now(address, frame, sizes[len(frame)], flags)`` with ``NOBLOCK`` among the flags: 0 or more if ``frame``
(``bytes``, at most ``SMALL``) was sent. If not, nothing happened, and ``raw_send`` will wait or say why."""

_get_now = _without_yielding("zmq_getsockopt")


def frames_left_of(socket: Any) -> Callable[[], int]:
    """Return what says, truthy or not, whether frames are left of the message that ``socket`` has just received from.

    It costs a third of ``raw_get``, and a frame that knows for itself costs more than the copy of its bytes.
    """
    if _get_now is None:
        known = weakref.ref(socket)
        return lambda: raw_get(known(), RCVMORE)
    value = (ctypes.c_int * 1)()
    size = ctypes.c_size_t(ctypes.sizeof(value))
    ask = partial(_get_now, ctypes.c_void_p(raw_address(socket)), RCVMORE, value, ctypes.byref(size))

    def frames_left() -> int:
        ask()
        return value[0]

    return frames_left
