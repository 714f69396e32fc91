"""Deadlines that hold in synchronous code.

A socket's timeout counts from the last byte, so a server that trickles never meets it. One thread per process
therefore watches every synchronous request and shuts its socket down at the deadline, which wakes the thread
that reads or writes it.

A request leaves ``_watched`` exactly once: taken out by its own thread when it ends, or by the watchdog when it
is late. Whoever takes it out decides what became of it, so a connection given back is never shut down in the
hands of its next user, and a response cut short by the watchdog is never taken for a complete one.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from app.pools.core import forks
from app.pools.http_pool.failures import NoThread

_NEVER = float("inf")


class Guard:
    """One request under watch: its socket, once there is one, and its deadline in monotonic seconds."""

    __slots__ = ("deadline", "sock")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.sock: socket.socket | None = None

    def shut_down(self) -> None:
        """Wake the thread that uses the socket."""
        if self.sock is not None:
            with contextlib.suppress(OSError):  # closed at this moment: nobody waits for it
                # Not SSLSocket's own shutdown, which would turn what is read next into plain text.
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


class Watchdog:
    """Shuts the socket of each watched request down at its deadline.

    The thread sleeps until the earliest deadline that it knew of; a request that ends in time costs it nothing.
    """

    def __init__(self) -> None:
        self._start_again()

    def _start_again(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._watched: dict[Guard, None] = {}
        self._wakes_at = _NEVER
        self._thread: threading.Thread | None = None

    def watch(self, guard: Guard) -> None:
        """Start to watch a request; its thread must ``release`` the guard, also after an error.

        Raises:
            NoThread: nobody can watch.
        """
        self._watched[guard] = None
        if guard.deadline < self._wakes_at:
            self._wake_by(guard.deadline)

    def release(self, guard: Guard) -> bool:
        """Stop watching. ``False`` if the deadline came first: what was read since is worth nothing."""
        return self._watched.pop(guard, guard) is None

    def extend(self, guard: Guard, deadline: float) -> bool:
        """Give a watched request another deadline. ``False`` if the old one came first.

        Raises:
            NoThread: nobody can watch.
        """
        guard.deadline = deadline
        if deadline < self._wakes_at:
            self._wake_by(deadline)
        return guard in self._watched

    def _wake_by(self, deadline: float) -> None:
        forks.register(self)
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="poolwire-http-deadlines", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    raise NoThread(error) from error
                self._thread = thread  # not before: whoever comes after a failure tries again
            self._wakes_at = min(self._wakes_at, deadline)
            self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(min(60.0, max(0.0, self._wakes_at - time.monotonic())))
            # Critical section: a deadline that comes in now is either seen here or wakes the thread again.
            with self._lock:
                self._wake.clear()
                self._wakes_at = _NEVER
            watched = list(self._watched)
            now = time.monotonic()
            for guard in watched:
                # The one who takes the guard out owns the outcome.
                if guard.deadline <= now and self._watched.pop(guard, guard) is None:
                    guard.shut_down()
            earliest = min((guard.deadline for guard in watched if guard.deadline > now), default=_NEVER)
            with self._lock:
                self._wakes_at = min(self._wakes_at, earliest)

    def forget_after_fork(self) -> None:
        """Start with a thread of the child's own, which the next request makes."""
        self._start_again()


watchdog = Watchdog()
"""The process's watchdog. It has no thread until the first synchronous request."""
