"""The multiplexers of a pool: for each event loop, one for each configuration that it asks by."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeAlias

from app.pools.core.budget import Budget
from app.pools.core.kept import KeptPlace
from app.pools.errors import ConnectionLost, PoolClosed
from app.pools.zmq_pool.attempts import PAUSE, Attempt
from app.pools.zmq_pool.attendant import attendant
from app.pools.zmq_pool.config import FOREVER, SocketConfig
from app.pools.zmq_pool.multiplexer import Multiplexer

_PATIENCE = 0.005

Make: TypeAlias = "Callable[[asyncio.AbstractEventLoop, SocketConfig, Callable[[], None]], Multiplexer]"


class Beginning:
    """Tasks of one loop that wait for one and the same multiplexer, and its place below the cap over all keys."""

    def __init__(self, place: KeptPlace) -> None:
        self.place = place
        self.waiting = 0


class _Search:
    """Looks again and again for places, for as long as anybody needs one: no event tells when a multiplexer is idle.

    Args:
        budget: whose places.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def descriptor(self) -> int | None:
        """Return nothing to wait for."""
        return None

    def attend(self) -> bool:
        """Ask all for a place once more."""
        hungry = list(self._budget.hungry)
        for member in hungry:
            self._budget.reclaim(member)
        return not hungry


class Multiplexers(dict[asyncio.AbstractEventLoop, dict[SocketConfig, Multiplexer]]):
    """The loop is the outer key, because a multiplexer belongs to the thread that runs its loop.

    The pool's lock guards all that changes it, but for a loop's own removals.

    Args:
        make: makes a multiplexer, which is to call what it is given when it is closed.
        serving: holds the pool's lock. Raises ``PoolClosed`` if the pool is stopped.
        budget: the cap over all keys. Each multiplexer has one place, with one connection as with the few that it may
            come to need.
        patience: seconds for which a place is waited for, unless the request has its own limit.
    """

    def __init__(
        self, make: Make, serving: Callable[[], AbstractContextManager[None]], budget: Budget, patience: float
    ) -> None:
        super().__init__()
        self._make = make
        self._serving = serving
        self._budget = budget
        self._search = _Search(budget)
        self._patience = patience
        self._beginnings: dict[tuple[asyncio.AbstractEventLoop, SocketConfig], Beginning] = {}

    async def begin(self, config: SocketConfig, timeout: float | None) -> tuple[Multiplexer, float | None]:
        """Return the running loop's multiplexer, as soon as there is what it needs, and the rest of ``timeout``.

        Raises:
            PoolTimeout: the places below the cap over all keys stayed taken.
            OutOfDescriptors: there were none for its connection.
        """
        loop = asyncio.get_running_loop()
        key = loop, config
        beginning = self._beginnings.get(key)
        if beginning is None:
            place = KeptPlace(self._budget, partial(self._let_go, loop, config))
            beginning = self._beginnings[key] = Beginning(place)
        beginning.waiting += 1
        try:
            return await self._wait_to_open(loop, config, beginning.place, timeout)
        finally:
            beginning.waiting -= 1
            if not beginning.waiting:
                del self._beginnings[key]
                if config not in self.get(loop, {}):
                    beginning.place.give_up()

    async def _wait_to_open(
        self, loop: asyncio.AbstractEventLoop, config: SocketConfig, place: KeptPlace, timeout: float | None
    ) -> tuple[Multiplexer, float | None]:
        attempt = Attempt(config.label, within=FOREVER if timeout is None else timeout)
        patience = self._patience if timeout is None else timeout
        while (made := attempt.make(lambda: self._open(loop, config, place))) is None:
            if not place.held and attempt.seconds >= patience:
                raise place.timed_out("zmq", config.label, attempt.seconds)
            await asyncio.sleep(PAUSE)
        return made, None if timeout is None else max(0.001, timeout - attempt.seconds)

    def _open(self, loop: asyncio.AbstractEventLoop, config: SocketConfig, place: KeptPlace) -> Multiplexer | None:
        # All of it under the lock: a stop that begins meanwhile ends what it finds here, and must find everything.
        with self._serving():
            self.close_those_of_closed_loops()
            made = self.get(loop, {}).get(config)  # by another task, while this one waited
            if made is None and place.taken():
                made = self._make(loop, config, place.give_up)
                self.setdefault(loop, {})[config] = made
        return made

    # Places for others

    def _let_go(self, loop: asyncio.AbstractEventLoop, config: SocketConfig) -> bool:
        """Have a multiplexer closed that nobody waits for, for the sake of who needs its place.

        Returns:
            whether it is, or is going to be; if not, it is asked again for as long as places are needed.
        """
        multiplexer = self.get(loop, {}).get(config)
        if multiplexer is None:
            return False
        if loop.is_closed():
            self.close_those_of_closed_loops()
            return True
        attendant.nudge(self._search)
        if multiplexer.leaving or multiplexer.busy or not loop.is_running():
            return False
        multiplexer.leaving = True
        with contextlib.suppress(RuntimeError):  # the loop was closed this moment
            loop.call_soon_threadsafe(self._leave, multiplexer)
        return True

    def _leave(self, multiplexer: Multiplexer) -> None:
        multiplexer.leaving = False
        if not multiplexer.busy:  # by now
            self._close_in_its_loop(multiplexer)

    def _close_in_its_loop(self, multiplexer: Multiplexer) -> None:
        of_loop = self.get(multiplexer.loop, {})
        if of_loop.get(multiplexer.config) is multiplexer:
            del of_loop[multiplexer.config]  # nobody can find it in between: who asks by it runs in this thread
            multiplexer.close()

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
        for loop in [loop for loop in list(self) if loop.is_closed()]:
            for multiplexer in self.pop(loop, {}).values():
                multiplexer.close()

    def close_idle(self, seconds: float) -> None:
        """Have those closed that nobody has used for so long, each in its loop, if that runs."""
        for multiplexer in [each for each in self.all() if each.idle_seconds() >= seconds]:
            if multiplexer.loop.is_running():
                with contextlib.suppress(RuntimeError):  # the loop was closed this moment
                    multiplexer.loop.call_soon_threadsafe(self._close_if_idle, multiplexer, seconds)
            else:
                self._close_if_standing(multiplexer)
        for loop in [loop for loop, of_loop in list(self.items()) if not of_loop]:
            self.pop(loop, None)  # which nobody else may remember

    def renew_old(self) -> None:
        """Have those get another connection whose own is old."""
        for multiplexer in [each for each in self.all() if each.old]:
            with contextlib.suppress(RuntimeError):  # the loop was closed this moment
                multiplexer.loop.call_soon_threadsafe(multiplexer.renew_if_old)

    def _close_if_standing(self, multiplexer: Multiplexer) -> None:
        of_loop = self.get(multiplexer.loop, {})
        if of_loop.pop(multiplexer.config, None) is None:  # closed this moment, by its loop
            return
        lost = ConnectionLost(multiplexer.config.endpoint, maybe_executed=True)
        if not multiplexer.close_if_standing(lost):  # the loop began to run this moment
            of_loop[multiplexer.config] = multiplexer

    def _close_if_idle(self, multiplexer: Multiplexer, seconds: float) -> None:
        if multiplexer.idle_seconds() >= seconds:
            self._close_in_its_loop(multiplexer)


def end_all(multiplexers: Iterable[Multiplexer], deadline: float) -> list[str]:
    """Wait for the requests of multiplexers until ``deadline`` (monotonic seconds) and close each in its loop's thread.

    Returns:
        for each that had some left, a line that says how many.
    """
    left: list[tuple[Multiplexer, int]] = []
    elsewhere: list[Multiplexer] = []
    for each in multiplexers:
        busy = each.busy
        if _close_here(each):
            left.append((each, busy))
        else:
            elsewhere.append(each)
    while any(each.busy and each.loop.is_running() for each in elsewhere) and time.monotonic() < deadline:
        time.sleep(_PATIENCE)
    left += [(each, each.busy) for each in elsewhere]
    _close_in_their_loops(elsewhere, max(deadline, time.monotonic() + 1.0))
    return [f"{each.config.label}: {busy} asyncio requests without their reply" for each, busy in left if busy]


def _close_here(multiplexer: Multiplexer) -> bool:
    """Close it if nothing can make progress while this thread waits. Returns whether it is closed."""
    try:
        inside = asyncio.get_running_loop() is multiplexer.loop
    except RuntimeError:
        inside = False
    if inside:
        multiplexer.close()
    return inside or multiplexer.close_if_standing(PoolClosed("zmq"))


def _close_in_their_loops(multiplexers: list[Multiplexer], deadline: float) -> None:
    """Close each in the thread that runs its loop, or here if the loop stops before it comes to that."""
    for each in multiplexers:
        with contextlib.suppress(RuntimeError):  # the loop was closed this moment
            each.loop.call_soon_threadsafe(each.close)
    while multiplexers and time.monotonic() < deadline:
        time.sleep(_PATIENCE)
        multiplexers = [each for each in multiplexers if not each.close_if_standing(PoolClosed("zmq"))]
