"""Witnesses: what a leased socket's own connection says of its endpoint, for types that no sentinel can watch.

A peer hands messages to whoever connects as PULL, PAIR, ROUTER or REP, so nothing may connect beside the sockets that
are leased. These are few, and held for long: so each has a monitor of its own, for as long as it is open.
So has the one socket of a PUB or PUSH, beside the sentinel: it is kept, and would be left alone by libzmq for ever.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import zmq

from app.pools.zmq_pool.attendant import attendant
from app.pools.zmq_pool.config import SocketConfig
from app.pools.zmq_pool.monitors import end_monitor, open_monitor
from app.pools.zmq_pool.reachability import WATCHED, Reachability, read_events
from app.pools.zmq_pool.retries import Retry
from app.pools.zmq_pool.sentinel import Sentinel
from app.pools.zmq_pool.sockets import LeanSocket


class Witness:
    """Reads what one socket's monitor reports. The attendant serves it; the monitor itself is the socket's.

    Args:
        socket: a socket that has not connected yet, or the first events would be missed.
        connect: has it connect anew, or puts that off, where libzmq does not try again; nobody does without it.
    """

    def __init__(self, socket: LeanSocket, connect: Callable[[Retry], None] | None) -> None:
        self._connect = connect
        self._retry = Retry(socket.config)
        self.reachability = Reachability(self._retry)
        self.ended = False
        self._reader = open_monitor(socket, WATCHED)
        self._descriptor = int(self._reader.get(zmq.FD))

    def descriptor(self) -> int | None:
        """Return what to wait for."""
        return self._descriptor

    def attend(self) -> bool:
        """Take note of the events that are there."""
        if self._reader.closed:
            return True
        try:
            read_events(self._reader, self.reachability, self._retry)
        except zmq.ContextTerminated:  # the pool has stopped, with the socket still leased
            attendant.unwatch(self)
            self.close()
            return True
        if self._connect is not None:
            if time.monotonic() >= self._retry.due:
                self._connect(self._retry)
            attendant.serve_at(self, self._retry.due)
        return True

    def end(self, socket: LeanSocket) -> None:
        """Watch no longer. Called in the thread that has the socket, before it is closed."""
        self.ended = True
        with contextlib.suppress(zmq.ZMQError):
            end_monitor(socket)
        attendant.dismiss(self, 0.0)

    def close(self) -> None:
        """Close the reader. Called by the attendant, whose it is."""
        self.ended = True
        self._reader.close(0)


class Witnesses:
    """Those of one configuration, if its sockets connect and no sentinel does, or they are to connect anew.

    Args:
        config: the configuration.
        connect: as a witness takes it.
    """

    def __init__(self, config: SocketConfig, connect: Callable[[Retry], None] | None = None) -> None:
        connects = not config.bind and not config.endpoint.startswith("inproc:")
        self._wanted = connects and (connect is not None or not Sentinel.suits(config))
        self._connect = connect
        # Without a lock, which a signal's handler that leases could find held by its own thread: each step is atomic.
        self._all: dict[Witness, None] = {}

    def call(self, socket: LeanSocket) -> None:
        """Have the connection of a new socket watched until it closes, or its lessee begins a monitor."""
        if not self._wanted:
            return
        witness = Witness(socket, self._connect)
        socket.__dict__["_witness"] = witness
        for ended in [each for each in list(self._all) if each.ended]:
            self._all.pop(ended, None)
        self._all[witness] = None
        attendant.watch(witness)

    @property
    def reachability(self) -> Reachability | None:
        """What is known of the endpoint: it is up if any socket is connected. ``None`` while there is no socket."""
        present = [witness.reachability for witness in list(self._all) if not witness.ended]
        return next((each for each in present if each.up), present[0] if present else None)
