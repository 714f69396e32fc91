"""``Lifecycle``: wires a container, checks it, starts its parts in order, and stops them in reverse."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from types import ModuleType, TracebackType
from typing import Any, Self

from app.containers import graph
from app.containers.errors import LifecycleError, StartTimeoutError, StopTimeoutError
from app.containers.graph import AnyContainer
from app.containers.parts import Part
from app.containers.parts import part as make_part
from app.containers.tasks import to_its_end
from app.containers.wiring import Wiring
from app.containers.workers import DaemonWorkers

# Seconds between two looks at whether injected calls still run.
_PATIENCE = 0.002

# Seconds by which a part's own stop may overrun the budget that it was given before it is left behind.
_GRACE = 0.1

# Seconds that a part has to itself before the next one of its wave starts in another thread: most pools are
# ready sooner, and then one thread serves them all.
_HEAD_START = 0.002

# Which lifecycle runs a container at this moment, by the container's identity.
_running: dict[int, Lifecycle] = {}
_lock = threading.Lock()


class Lifecycle:
    """Runs a container for the time of a ``with`` or an ``async with`` block.

    Entering wires ``modules``, checks every marker in them, then starts the container's pools and resources:
    what others need first, what is independent at the same time. If one fails, those that had started, and
    the one that failed, are stopped in reverse, and its error is raised with theirs in its notes.

    Leaving waits until no injected call runs, then stops the parts in reverse, all within one budget: each pool
    refuses new leases, waits for those out, and closes. One that fails, or hangs, does not keep the others from
    being stopped. A container that was stopped can be started again, with new pools.

    Args:
        container: an instance of a container.
        modules: the modules, or their names, whose ``@inject`` functions the container serves.
        packages: packages, or their names, all of whose modules it serves, also those imported later.
        unchecked: classes and functions in them whose markers the container need not have.
        start_timeout: seconds for each part to start.
        stop_timeout: seconds for all parts to stop.

    Raises:
        UnresolvedMarkersError, CycleError: at the start, before anything was started.
        StartTimeoutError: a part took too long to start.
        LifecycleError: it runs already, or it is stopped in another event loop than it was started in.
        ExceptionGroup: at the stop, with the error of each part that failed to stop, ``StopTimeoutError`` for one
            that did not end in time.
    """

    def __init__(
        self,
        container: AnyContainer,
        *,
        modules: Iterable[ModuleType | str] = (),
        packages: Iterable[ModuleType | str] = (),
        unchecked: Iterable[Any] = (),
        start_timeout: float = 30.0,
        stop_timeout: float = 10.0,
    ) -> None:
        if isinstance(container, type):
            raise LifecycleError(f"{container.__name__} is a class; give an instance: {container.__name__}()")
        self.container = container
        self._wiring = Wiring(container, modules, packages=packages, unchecked=unchecked)
        self.start_timeout = start_timeout
        self.stop_timeout = stop_timeout
        self.report: dict[str, float] = {}
        """How many seconds each part took to start, in the order in which they were ready."""
        self._waves: list[list[Part]] = []  # what was started, or begun to be
        self._loop: asyncio.AbstractEventLoop | None = None

    # With threads

    def __enter__(self) -> Self:
        waves = self._plan()
        workers = DaemonWorkers("poolwire-start")
        try:
            for wave in waves:
                self._start_wave(wave, workers)
        except BaseException as error:
            self._note(error, self._stop_all())
            raise
        finally:
            workers.close()
        return self

    def _start_wave(self, wave: list[Part], workers: DaemonWorkers) -> None:
        self._waves.append(wave)
        started: dict[Part, Future[None]] = {}
        for part in wave:
            run = workers.run_here if part.keeps_time else workers.submit
            started[part] = run(functools.partial(self._timed, part))
            wait([started[part]], _HEAD_START)
        wait(started.values(), self.start_timeout)
        errors = []
        for part, future in started.items():
            if future.done():
                errors.append(future.exception())
            else:
                part.give_up()
                errors.append(StartTimeoutError(part.name, self.start_timeout))
        self._raise_first(errors)

    def _timed(self, part: Part) -> None:
        began = time.perf_counter()
        part.start()
        self.report[part.name] = time.perf_counter() - began

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and not self._loop.is_closed():
            raise LifecycleError("started with `async with`, so it is stopped with it too")
        self._raise(self._stop_all())

    def _stop_all(self) -> list[BaseException]:
        budget = _Budget(self.stop_timeout)
        errors: list[BaseException] = []
        workers = DaemonWorkers("poolwire-stop")
        try:
            try:
                while self._wiring.running_calls and budget.may_drain:
                    time.sleep(_PATIENCE)
            except BaseException as error:  # noqa: BLE001 - an interrupt ends the waiting, not the stopping
                errors.append(error)
            for part in self._stopping():
                try:
                    run = workers.run_here if part.keeps_time else workers.submit
                    stopped = run(functools.partial(part.stop, budget.left))
                    wait([stopped], budget.left + _GRACE)
                    errors += _failure(part, stopped.exception() if stopped.done() else StopTimeoutError(part.name))
                except BaseException as error:  # noqa: BLE001 - raised when the rest is stopped
                    errors.append(error)
                part.forget()
        finally:
            workers.close()
            self._finish()
        return errors

    # With an event loop

    async def __aenter__(self) -> Self:
        waves = self._plan()
        self._loop = asyncio.get_running_loop()
        try:
            for wave in waves:
                await self._start_wave_async(wave)
        except BaseException as error:
            self._note(error, await to_its_end(self._stop_all_async()))
            raise
        return self

    async def _start_wave_async(self, wave: list[Part]) -> None:
        self._waves.append(wave)
        results = await asyncio.gather(*map(self._timed_async, wave), return_exceptions=True)
        self._raise_first(results)

    async def _timed_async(self, part: Part) -> None:
        began = time.perf_counter()
        limit = asyncio.timeout(self.start_timeout)
        try:
            async with limit:
                await part.start_async()
        except TimeoutError:
            if limit.expired():
                raise StartTimeoutError(part.name, self.start_timeout) from None
            raise
        self.report[part.name] = time.perf_counter() - began

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = self._loop
        # A loop that has been closed cannot stop anything; what it held is gone, the rest is stopped here.
        if loop is not asyncio.get_running_loop() and not (loop is not None and loop.is_closed()):
            raise LifecycleError("started in another event loop; stop it in the loop that started it")
        self._raise(await to_its_end(self._stop_all_async()))

    async def _stop_all_async(self) -> list[BaseException]:
        budget = _Budget(self.stop_timeout)
        errors: list[BaseException] = []
        try:
            while self._wiring.running_calls and budget.may_drain:  # noqa: ASYNC110 - calls end in any thread
                await asyncio.sleep(_PATIENCE)
            for part in self._stopping():
                stopped = asyncio.ensure_future(part.stop_async(budget.left))
                await asyncio.wait((stopped,), timeout=budget.left + _GRACE)
                if not stopped.done():
                    stopped.cancel()
                    errors.append(StopTimeoutError(part.name))
                elif stopped.cancelled():
                    errors.append(LifecycleError(f"{part.name} cancelled its own stop"))
                else:
                    errors += _failure(part, stopped.exception())
                part.forget()
        finally:
            self._finish()
        return errors

    # Both

    def _stopping(self) -> Iterator[Part]:
        """The parts in reverse, each taken out as it is returned, so that none is stopped twice."""
        while self._waves:
            wave = self._waves[-1]
            while wave:
                yield wave.pop()
            self._waves.pop()

    def _plan(self) -> list[list[Part]]:
        """Wire, check and order; nothing has been started when this raises."""
        with _lock:
            if id(self.container) in _running:
                raise LifecycleError("the container runs already; stop it before it is started again")
            _running[id(self.container)] = self
        self.report = {}
        try:
            self._wiring.connect()
            graph.refuse_unknown_methods(self.container)
            graph.refuse_captured_leases(self.container)
            return [[make_part(*named) for named in wave] for wave in graph.start_order(self.container)]
        except BaseException:
            self._finish()
            raise

    def _finish(self) -> None:
        self._wiring.disconnect()
        with _lock:
            if _running.get(id(self.container)) is self:
                del _running[id(self.container)]
        self._loop = None

    def _raise_first(self, results: Iterable[BaseException | None]) -> None:
        errors = [result for result in results if result is not None]
        if errors:
            for other in errors[1:]:
                errors[0].add_note(f"and at the same time: {other!r}")
            raise errors[0]

    @staticmethod
    def _note(error: BaseException, others: Iterable[BaseException]) -> None:
        for other in others:
            error.add_note(f"and while stopping what had started: {other!r}")

    @staticmethod
    def _raise(errors: list[BaseException]) -> None:
        ordinary = [error for error in errors if isinstance(error, Exception)]
        interrupt = next((error for error in errors if not isinstance(error, Exception)), None)
        if interrupt is not None:
            for error in ordinary:
                interrupt.add_note(f"and while stopping: {error!r}")
            raise interrupt
        if ordinary:
            raise ExceptionGroup("not every part of the container stopped cleanly", ordinary)


class _Budget:
    """The seconds that a stop has. Running calls may use nine tenths of them; closing needs the rest."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._drained_by = self._end - seconds / 10

    @property
    def may_drain(self) -> bool:
        return time.monotonic() < self._drained_by

    @property
    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())


def _failure(part: Part, error: BaseException | None) -> list[BaseException]:
    if error is None:
        return []
    error.add_note(f"raised while {part.name} was stopped")
    return [error]


def modules_of(*members: Callable[..., Any] | type) -> list[ModuleType]:
    """Return the modules in which ``members`` and, for a class, its bases are written, for ``Lifecycle``."""
    found: dict[str, ModuleType] = {}
    for member in members:
        for part in inspect.getmro(member) if isinstance(member, type) else (member,):
            module = sys.modules.get(part.__module__)
            if module is not None and part.__module__ != "builtins":
                found[part.__module__] = module
    return list(found.values())
