"""How parts are started and stopped: with threads, for ``with``, or in an event loop, for ``async with``.

What ``Lifecycle`` decides is written once, as coroutines. With ``InThreads`` none of them ever has to wait for an
event loop, so ``at_once`` runs them without one.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future, wait
from typing import Any, Protocol, TypeVar

from app.containers.errors import LifecycleError, StartTimeoutError, StopTimeoutError
from app.containers.parts import Part
from app.containers.tasks import to_its_end
from app.containers.workers import DaemonWorkers

T = TypeVar("T")

# Seconds by which a part may overrun its limit, to end by itself, before it is left behind.
_GRACE = 0.1

# Seconds that a part has to itself before the next one of its wave starts in another thread: most pools are
# ready sooner, and then one thread serves them all.
_HEAD_START = 0.002

Report = dict[str, float]
Errors = list[BaseException]


class Edge(Protocol):
    """What runs parts."""

    async def start(self, wave: Sequence[Part], limit: float, report: Report) -> Errors:
        """Start parts that do not need each other, each within ``limit`` seconds.

        Returns:
            what kept any of them from starting; ``report`` has the seconds that each of the others took.
        """

    async def stop(self, part: Part, limit: float) -> Errors:
        """Stop one part within ``limit`` seconds, and return its error, if there is one."""

    async def pause(self, seconds: float) -> None:
        """Let others work."""

    async def shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Bring ``work`` to its end although the caller is cancelled."""


class InThreads:
    """Runs parts in daemon threads, and in the caller's what is known to keep its time."""

    def __init__(self) -> None:
        self._workers = DaemonWorkers("poolwire-lifecycle")

    async def start(self, wave: Sequence[Part], limit: float, report: Report) -> Errors:
        started: dict[Part, Future[None]] = {}
        for part in wave:
            run = self._workers.run_here if part.keeps_time else self._workers.submit
            started[part] = run(functools.partial(_timed, part, report))
            wait([started[part]], _HEAD_START)
        wait(started.values(), limit)
        errors: Errors = []
        for part, future in started.items():
            if future.done():
                errors += _noted(future.exception(), f"raised while {part.name} was started")
            else:
                part.give_up()
                errors.append(StartTimeoutError(part.name, limit))
        return errors

    async def stop(self, part: Part, limit: float) -> Errors:
        run = self._workers.run_here if part.keeps_time else self._workers.submit
        stopped = run(functools.partial(part.stop, limit))
        wait([stopped], limit + _GRACE)
        if not stopped.done():
            return [StopTimeoutError(part.name)]
        return _noted(stopped.exception(), f"raised while {part.name} was stopped")

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - no event loop runs this

    async def shielded(self, work: Coroutine[Any, Any, T]) -> T:
        return await work

    def close(self) -> None:
        """Let the threads end when they have done what they do."""
        self._workers.close()


def _timed(part: Part, report: Report) -> None:
    began = time.perf_counter()
    part.start()
    report[part.name] = time.perf_counter() - began


class InLoop:
    """Runs parts as tasks of the event loop that runs now."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def start(self, wave: Sequence[Part], limit: float, report: Report) -> Errors:
        tasks = {asyncio.ensure_future(_timed_async(part, report)): part for part in wave}
        try:
            _, late = await asyncio.wait(tasks, timeout=limit)
            await _cancel(late)
        except asyncio.CancelledError:
            await to_its_end(_cancel(tasks))
            for task, part in tasks.items():
                if not task.done():
                    part.give_up()
            raise
        errors: Errors = []
        for task, part in tasks.items():
            if task in late:
                part.give_up()
                errors.append(StartTimeoutError(part.name, limit))
            elif task.cancelled():
                errors.append(LifecycleError(f"{part.name} cancelled its own start"))
            else:
                errors += _noted(task.exception(), f"raised while {part.name} was started")
        return errors

    async def stop(self, part: Part, limit: float) -> Errors:
        stopped = asyncio.ensure_future(part.stop_async(limit))
        await asyncio.wait((stopped,), timeout=limit + _GRACE)
        if not stopped.done():
            await _cancel([stopped])
            return [StopTimeoutError(part.name)]
        if stopped.cancelled():
            return [LifecycleError(f"{part.name} cancelled its own stop")]
        return _noted(stopped.exception(), f"raised while {part.name} was stopped")

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def shielded(self, work: Coroutine[Any, Any, T]) -> T:
        return await to_its_end(work)


async def _timed_async(part: Part, report: Report) -> None:
    began = time.perf_counter()
    await part.start_async()
    report[part.name] = time.perf_counter() - began


async def _cancel(tasks: Any) -> None:
    """Cancel ``tasks`` and wait a moment for them to end; one that does not is left behind."""
    for task in tasks:
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else asks for it
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_GRACE)


def _noted(error: BaseException | None, note: str) -> Errors:
    if error is None:
        return []
    error.add_note(note)
    return [error]
