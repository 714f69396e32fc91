"""libzmq's calls as pyzmq compiles them, without the Python layer above, which costs more than they do."""

from __future__ import annotations

from typing import Any

import zmq
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
