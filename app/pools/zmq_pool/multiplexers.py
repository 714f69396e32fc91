"""The multiplexers of a pool: for each event loop, one for each configuration that it asks by."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

from app.pools.zmq_pool.config import SocketConfig
from app.pools.zmq_pool.multiplexer import Multiplexer

_PATIENCE = 0.005


class Multiplexers(dict[asyncio.AbstractEventLoop, dict[SocketConfig, Multiplexer]]):
    """The loop is the outer key, because a multiplexer belongs to the thread that runs its loop.

    The pool's lock guards all that changes it, but for a loop's own removals.
    """

    def add(self, multiplexer: Multiplexer) -> None:
        """Have ``multiplexer`` found from now on."""
        self.setdefault(multiplexer.loop, {})[multiplexer.config] = multiplexer

    def all(self) -> Iterator[Multiplexer]:
        """Yield every one."""
        for of_loop in list(self.values()):
            yield from list(of_loop.values())

    def take_all(self) -> list[Multiplexer]:
        """Return every one, to be ended; none is found any more."""
        taken = list(self.all())
        self.clear()
        return taken

    def close_those_of_closed_loops(self) -> None:
        """Close what an ``asyncio.run`` left behind; nothing else can use it any more."""
        for loop in [loop for loop in self if loop.is_closed()]:
            for multiplexer in self.pop(loop).values():
                multiplexer.close()

    def close_idle(self, seconds: float) -> None:
        """Have those closed, each in its loop, that nobody has used for so long."""
        for multiplexer in self.all():
            if multiplexer.idle_seconds() >= seconds:
                with contextlib.suppress(RuntimeError):  # the loop was closed this moment
                    multiplexer.loop.call_soon_threadsafe(self._close_if_idle, multiplexer, seconds)

    def _close_if_idle(self, multiplexer: Multiplexer, seconds: float) -> None:
        of_loop = self.get(multiplexer.loop, {})
        if of_loop.get(multiplexer.config) is multiplexer and multiplexer.idle_seconds() >= seconds:
            del of_loop[multiplexer.config]  # nobody can find it in between: who asks by it runs in this thread
            multiplexer.close()


def end(multiplexer: Multiplexer, deadline: float) -> list[str]:
    """Wait for a multiplexer's requests until ``deadline`` (monotonic seconds) and close it, in its loop's thread.

    Returns:
        a line that says how many were left, or nothing.
    """
    loop = multiplexer.loop
    try:
        inside = asyncio.get_running_loop() is loop
    except RuntimeError:
        inside = False
    if inside or not loop.is_running():
        left = multiplexer.busy  # nothing can make progress while this thread waits
        multiplexer.close()
    else:
        while multiplexer.busy and time.monotonic() < deadline and loop.is_running():
            time.sleep(_PATIENCE)
        left = multiplexer.busy
        _close_in_its_loop(multiplexer, max(deadline, time.monotonic() + 1.0))
    return [f"{multiplexer.config.label}: {left} asyncio requests without their reply"] if left else []


def _close_in_its_loop(multiplexer: Multiplexer, deadline: float) -> None:
    """Close a multiplexer in the thread that runs its loop, or here if the loop stops before it comes to that."""
    closed = threading.Event()

    def close() -> None:
        multiplexer.close()
        closed.set()

    with contextlib.suppress(RuntimeError):  # the loop was closed this moment
        multiplexer.loop.call_soon_threadsafe(close)
    while not closed.wait(_PATIENCE) and time.monotonic() < deadline:
        if not multiplexer.loop.is_running():
            multiplexer.close()
            return
