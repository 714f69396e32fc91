"""The process's one ``zmq.Context``.

There is exactly one because ``inproc://`` endpoints of two contexts never meet, silently, and because each
context costs two threads. Pools take a share in it; the last one to stop terminates it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import threading
import time
from typing import Any

import zmq

from app.pools.core import forks
from app.pools.errors import OutOfDescriptors, PoolClosed
from app.pools.zmq_pool.attempts import out_of_descriptors
from app.pools.zmq_pool.attendant import attendant
from app.pools.zmq_pool.curve import CurveServer
from app.pools.zmq_pool.zap import Authenticator

log = logging.getLogger(__name__)

_NEEDED = 8
"""Descriptors without which a context is not begun: its first socket takes six of them, and libzmq aborts the process
if some of its own threads' are not to be had."""


class SharedContext:
    """Makes the context for the first pool and terminates it after the last."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._shares = 0
        self._authenticator: Authenticator | None = None
        self._ending: threading.Thread | None = None  # which the process's end waits for

    def take(self) -> zmq.Context[zmq.Socket[bytes]]:
        """Return the context, for use until ``give``.

        Raises:
            OutOfDescriptors: there is no context yet, and there are too few descriptors to begin one.
        """
        forks.register(self)
        with self._lock:
            if self._context is None:
                self._context = _make()
            self._shares += 1
            return self._context

    def give(self, deadline: float, *, left_open: bool = False) -> bool:
        """Give up a share; the last one terminates the context, by ``deadline`` (monotonic seconds).

        Args:
            deadline: how long to wait for that.
            left_open: whether a socket closes only after the caller, a signal's handler, which then does not wait
                for it; ``finish`` does.

        Returns:
            whether nothing of this share is left. If a socket is still open then, termination goes on in the
            background and ends when that socket is closed; every call on it raises ``zmq.ContextTerminated``.
        """
        with self._lock:
            self._shares -= 1
            if self._shares:
                return True
            context, self._context = self._context, None
            authenticator, self._authenticator = self._authenticator, None
        if authenticator is not None:
            left_open = not attendant.dismiss(authenticator) or left_open
        assert context is not None
        # In a thread, because libzmq waits without a limit for sockets that are still open.
        ending = threading.Thread(target=context.term, name="poolwire-zmq-term", daemon=True)
        try:
            ending.start()
        except RuntimeError as error:
            self._keep(context)
            log.warning("the ZMQ context is left to the next pool; no thread can be started to end it: %s", error)
            return False
        if left_open:
            self._ending = ending
            return False
        ending.join(max(0.1, deadline - time.monotonic()))
        if ending.is_alive():
            log.warning("the ZMQ context still has open sockets; it ends when they are closed")
        return not ending.is_alive()

    def _keep(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Have the next pool take a share in ``context``; if one has begun another meanwhile, nobody has this one."""
        with self._lock:
            if self._context is None:
                self._context = context
            else:
                forks.bury(context)

    def finish(self, seconds: float) -> None:
        """Wait, at most ``seconds``, for the end of a context whose last sockets were left open."""
        ending = self._ending
        if ending is not None:
            ending.join(seconds)

    def authenticator(self) -> Authenticator:
        """Return the context's ZAP handler, for a CURVE server about to bind; libzmq permits one per context."""
        with self._lock:
            if self._context is None:
                raise PoolClosed("zmq")
            if self._authenticator is None:
                self._authenticator = Authenticator(self._context)
                attendant.watch(self._authenticator)
            return self._authenticator

    def admissions(self, server: CurveServer) -> dict[str, Any]:
        """Return whom the binds of ``server`` let in; nothing before one has been bound."""
        authenticator = self._authenticator
        return {} if authenticator is None else authenticator.figures(server)

    def forget_after_fork(self) -> None:
        """Leave the parent's context alone: its threads are not in this process, and closing it would hang."""
        forks.bury(self._context, self._authenticator)
        self._lock = threading.RLock()
        self._authenticator = None
        self._context = None
        self._shares = 0
        self._ending = None


def _make() -> zmq.Context[zmq.Socket[bytes]]:
    try:
        _check_descriptors()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        # Only takes effect before the first socket. The default, 1023, is less than a busy process needs.
        context.set(zmq.MAX_SOCKETS, socket_limit())
        context.socket(zmq.PAIR).close(0)  # starts libzmq's threads now, while their descriptors are known to be there
    except (zmq.ZMQError, OSError) as error:
        if not out_of_descriptors(error):
            raise
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise OutOfDescriptors("the ZMQ context", 0.0, limit) from error
    return context


def _check_descriptors() -> None:
    """Raise ``OSError`` unless this process can have as many more descriptors as a context needs."""
    with contextlib.ExitStack() as held:
        for _ in range(_NEEDED):
            held.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


def socket_limit() -> int:
    """Return how many sockets the process may open, judging by its limit of file descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A connected socket takes two descriptors; the other third is for everything else the process does.
    return 65_535 if soft == resource.RLIM_INFINITY else min(65_535, max(256, soft // 3))


shared_context = SharedContext()
"""The process's context. Nothing is made until a pool takes a share."""
