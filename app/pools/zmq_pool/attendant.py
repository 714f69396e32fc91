"""The attendant: one thread per process that serves sockets nobody is calling at the moment.

It sends what an outlet had to queue and reads what monitors report. It sleeps in ``poll`` on their
descriptors; only while something is stuck does it also look every few milliseconds, because a lessee who holds
a socket gives no sign of its own through the descriptor.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import threading
import time
from typing import Protocol

from app.pools.core import forks
from app.pools.zmq_pool.attempts import out_of_descriptors

log = logging.getLogger(__name__)

_TICK = 0.02  # seconds
_LONGEST = 3600.0  # seconds in one poll, which takes no more than 2^31 - 1 ms


class Attended(Protocol):
    """Something that the attendant serves."""

    def descriptor(self) -> int | None:
        """Return what to wait for, or ``None`` if only the next tick can tell."""

    def attend(self) -> bool:
        """Do what can be done without blocking. Returns whether nothing is left to do."""


class Closing(Attended, Protocol):
    """A member whose sockets are the attendant's."""

    def close(self) -> None:
        """Close them; called in the attendant's thread."""


class Attendant:
    """Serves members from one daemon thread, which runs while there are any."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        # Re-entrant: a finaliser that runs while this thread holds it may nudge, too.
        self._lock = threading.RLock()
        self._watched: set[Attended] = set()
        self._stuck: set[Attended] = set()
        self._fresh: set[Attended] = set()  # watched from now on: what has happened already gives no sign
        self._due: dict[Attended, float] = {}
        self._leaving: list[tuple[Closing, threading.Event]] = []
        self._thread: threading.Thread | None = None
        self._alarm_bell: int | None = None

    def nudge(self, member: Attended) -> None:
        """Call ``member.attend()`` until it has nothing left to do."""
        if member in self._stuck:
            return
        with self._lock:
            self._ensure_running()
            self._stuck.add(member)

    def watch(self, member: Attended) -> None:
        """Call ``member.attend()`` whenever its descriptor is readable, until ``unwatch``."""
        with self._lock:
            self._ensure_running()
            self._watched.add(member)
            self._fresh.add(member)

    def serve_at(self, member: Attended, when: float) -> None:
        """Call ``member.attend()`` once at ``when`` (monotonic seconds, infinity for never) if it is watched then."""
        with self._lock:
            if when == math.inf:
                self._due.pop(member, None)
            else:
                self._due[member] = when
                self._alarm()

    def dismiss(self, member: Closing, seconds: float = 5.0) -> bool:
        """Leave ``member`` alone and close it, in the thread that used its sockets; wait for that ``seconds``.

        Returns:
            whether it is closed. It is not yet if this is a signal's handler that has interrupted a call of the
            attendant: the other thread gets on only after the handler.
        """
        done = threading.Event()
        interrupted = self._lock._is_owned()  # type: ignore[attr-defined]  # as `threading.Condition` asks
        with self._lock:
            self._leave_alone(member)
            running = self._thread is not None and self._thread is not threading.current_thread()
            if running:
                self._leaving.append((member, done))
                self._alarm()
        if not running:
            member.close()
            return True
        return not interrupted and done.wait(seconds)

    def unwatch(self, member: Attended) -> None:
        """Leave ``member`` alone; a call that runs at this moment may still end a little later."""
        with self._lock:
            self._leave_alone(member)
            self._alarm()

    def _leave_alone(self, member: Attended) -> None:
        self._watched.discard(member)
        self._stuck.discard(member)
        self._due.pop(member, None)

    def _ensure_running(self) -> None:
        if self._thread is None:
            forks.register(self)
            thread = threading.Thread(target=self._run, name="poolwire-zmq", daemon=True)
            thread.start()
            # Last, so that an interrupt leaves no thread that never runs: one that is not this one ends by itself.
            self._thread = thread
        else:
            self._alarm()

    def _alarm(self) -> None:
        if self._alarm_bell is not None:
            with contextlib.suppress(BlockingIOError):  # it is full of alarms already
                os.write(self._alarm_bell, b"!")

    def _run(self) -> None:
        pipe: tuple[int, int] | None = None
        try:
            while True:
                pipe = pipe or _open_alarm()
                if not self._round(pipe):
                    return
        finally:
            with self._lock:  # or the next alarm would be written to what has that descriptor by then
                if self._thread is threading.current_thread():
                    self._thread = self._alarm_bell = None
            for descriptor in pipe or ():
                os.close(descriptor)

    def _round(self, pipe: tuple[int, int] | None) -> bool:
        """Wait for a descriptor or a tick and serve those concerned. Returns whether anyone is left."""
        wake, bell = pipe or (None, None)
        with self._lock:
            if self._thread is not threading.current_thread():
                return False
            self._alarm_bell = bell
            leaving, self._leaving = self._leaving, []
            for gone, done in leaving:
                _close(gone)
                done.set()
            stuck, watched = list(self._stuck), list(self._watched)
            fresh, self._fresh = (self._fresh | self._take_due()) & self._watched, set()
            next_due = min(self._due.values(), default=math.inf)
            if not stuck and not watched:
                self._thread = self._alarm_bell = None
                return False
        poller = select.poll()
        if wake is not None:
            poller.register(wake, select.POLLIN)
        by_descriptor: dict[int, Attended] = {}
        failed: set[Attended] = set()
        for member in (*stuck, *watched):
            try:
                descriptor = member.descriptor()
            except Exception:
                log.exception("%r cannot be waited for; it is left alone until it is used again", member)
                self.unwatch(member)
                failed.add(member)
                continue
            if descriptor is not None:
                by_descriptor[descriptor] = member
                poller.register(descriptor, select.POLLIN)
        patience = 0.0 if fresh else _TICK if stuck or wake is None else max(0.0, next_due - time.monotonic())
        readable = {descriptor for descriptor, _ in poller.poll(_milliseconds(patience))}
        if wake is not None and wake in readable:
            os.read(wake, 4096)
        called = {by_descriptor[descriptor] for descriptor in readable & by_descriptor.keys()}
        for member in called.union(stuck, fresh) - failed:
            self._serve(member)
        return True

    def _take_due(self) -> set[Attended]:
        now = time.monotonic()
        due = {member for member, when in self._due.items() if when <= now}
        for member in due:
            del self._due[member]
        return due

    def _serve(self, member: Attended) -> None:
        with self._lock:
            self._stuck.discard(member)  # before, or a nudge that comes meanwhile would be lost
        try:
            done = member.attend()
        except Exception:
            log.exception("%r could not be served; it is left alone until it is used again", member)
            done = True
        if not done:
            with self._lock:
                self._stuck.add(member)

    def forget_after_fork(self) -> None:
        """Start again with a thread of the child's own, which the next member makes."""
        forks.bury(self._watched, self._stuck, self._due)
        self._reset()


def _milliseconds(seconds: float) -> int | None:
    return None if seconds == math.inf else math.ceil(1000 * min(seconds, _LONGEST))


def _close(member: Closing) -> None:
    try:
        member.close()
    except Exception:
        log.exception("%r could not be closed", member)


def _open_alarm() -> tuple[int, int] | None:
    """Return both ends of a pipe, or ``None`` while there are no descriptors: then the next tick has to do."""
    try:
        return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if not out_of_descriptors(error):
            raise
        return None


attendant = Attendant()
"""The process's attendant. It has no thread until a socket needs it."""
