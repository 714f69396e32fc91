"""Monitors: what libzmq reports of one socket's connections."""

from __future__ import annotations

import itertools

import zmq

_serials = itertools.count()


def open_monitor(socket: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """Return the reader of a socket's ``events``. Open it before the socket connects, or the first ones are missed.

    What is not read stays in it, without a limit: at one, libzmq's only thread would wait for the reader, and every
    socket of the process for that thread. The reader is there first, because without one it would wait as well.
    """
    address = f"inproc://poolwire-monitor-{next(_serials)}"
    reader: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
    try:
        reader.linger = 0
        reader.rcvhwm = 0
        reader.connect(address)
        zmq.Socket.monitor(socket, address, events)
    except BaseException:
        reader.close(0)
        raise
    return reader


def end_monitor(socket: zmq.Socket[bytes]) -> None:
    """Have no more events reported. Call it before the reader is closed: libzmq would wait for another one."""
    zmq.Socket.monitor(socket, None, 0)
