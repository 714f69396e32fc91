"""``Lifecycle``: wires a container, checks it, starts its parts in order, and stops them in reverse."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType, TracebackType
from typing import Any, Self

from dependency_injector import containers

from app.containers.edges import Edge, Errors, InLoop, InThreads
from app.containers.errors import LifecycleError
from app.containers.graph import AnyContainer, Graph
from app.containers.parts import Part
from app.containers.parts import part as make_part
from app.containers.tasks import at_once
from app.containers.wiring import Wiring

# Seconds between two looks at whether injected calls still run.
_PATIENCE = 0.002

# Which lifecycle runs a container at this moment, by the container's identity.
_running: dict[int, Lifecycle] = {}
_lock = threading.Lock()


class Lifecycle:
    """Runs a container for the time of a ``with`` or an ``async with`` block.

    Entering wires ``modules``, checks every marker in them, then starts the container's pools and resources:
    what others need first, what is independent at the same time. If one fails, those that had started, and
    the one that failed, are stopped in reverse, and its error is raised with theirs in its notes.

    Leaving refuses new calls with ``StoppingError``, except those that a running call or the work on a message
    makes, and waits until none runs. Then it stops the parts in reverse, all within one budget: each pool refuses
    new leases, waits for those out, and closes. One that fails, or hangs, does not keep the others from being
    stopped. A container that was stopped can be started again, with new pools; stopping it twice does nothing.

    Args:
        container: an instance of a container.
        modules: the modules, or their names, whose ``@inject`` functions the container serves.
        packages: packages, or their names, all of whose modules it serves, also those imported later.
        unchecked: classes and functions in them whose markers the container need not have.
        start_timeout: seconds for each part to start.
        stop_timeout: seconds for all parts to stop.

    Raises:
        UnresolvedMarkersError, CycleError: at the start, before anything was started.
        CapturedLeaseError, AlreadyWiredError: likewise.
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
        if not isinstance(container, containers.Container):
            raise LifecycleError(f"{container!r} is no container; give an instance of AgentContainer or of your own")
        self.container = container
        self._wiring = Wiring(container, modules, packages=packages, unchecked=unchecked)
        self.start_timeout = start_timeout
        self.stop_timeout = stop_timeout
        self.report: dict[str, float] = {}
        """How many seconds each part took to start, in the order in which they were ready."""
        self._waves: list[list[Part]] = []  # what was started, or begun to be
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        edge = InThreads()
        try:
            at_once(self._start(edge))
        finally:
            edge.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._runs:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise LifecycleError("started with `async with`, so it is stopped with it too")
        edge = InThreads()
        try:
            _raise_all(at_once(self._stop(edge)))
        finally:
            edge.close()

    async def __aenter__(self) -> Self:
        edge = InLoop()
        await self._start(edge)
        self._loop = edge.loop
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._runs:
            return
        edge, began_in = InLoop(), self._loop
        # A loop that has been closed cannot stop anything; what it held is gone, the rest is stopped here.
        if began_in is not edge.loop and not (began_in is not None and began_in.is_closed()):
            raise LifecycleError("started in another event loop; stop it in the loop that started it")
        _raise_all(await edge.shielded(self._stop(edge)))

    async def _start(self, edge: Edge) -> None:
        waves = self._plan()
        try:
            for wave in waves:
                self._waves.append(list(wave))
                _raise_first(await edge.start(wave, self.start_timeout, self.report))
        except BaseException as error:
            for other in await edge.shielded(self._stop(edge)):
                error.add_note(f"and while stopping what had started: {other!r}")
            raise

    async def _stop(self, edge: Edge) -> Errors:
        budget = _Budget(self.stop_timeout)
        errors: Errors = []
        stopped: list[Part] = []
        try:
            self._wiring.refuse_new_calls()
            while self._wiring.running_calls and budget.may_drain:
                await edge.pause(_PATIENCE)
        except BaseException as error:  # noqa: BLE001 - an interrupt ends the waiting, not the stopping
            errors.append(error)
        for part in self._stopping():
            stopped.append(part)
            try:
                errors += await edge.stop(part, budget.left)
            except BaseException as error:  # noqa: BLE001 - raised when the rest is stopped
                errors.append(error)
        self._wiring.disconnect()
        for part in stopped:  # not before: a call that comes too late would make a new pool
            part.forget()
        self._end()
        return errors

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
            graph = Graph(self.container)
            graph.check()
            return [[make_part(*named) for named in wave] for wave in graph.start_order()]
        except BaseException:
            self._wiring.disconnect()
            self._end()
            raise

    @property
    def _runs(self) -> bool:
        return _running.get(id(self.container)) is self

    def _end(self) -> None:
        with _lock:
            if self._runs:
                del _running[id(self.container)]
        self._loop = None


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


def _raise_first(errors: Errors) -> None:
    if errors:
        for other in errors[1:]:
            errors[0].add_note(f"and at the same time: {other!r}")
        raise errors[0]


def _raise_all(errors: Errors) -> None:
    ordinary = [error for error in errors if isinstance(error, Exception)]
    interrupt = next((error for error in errors if not isinstance(error, Exception)), None)
    if interrupt is not None:
        for error in ordinary:
            interrupt.add_note(f"and while stopping: {error!r}")
        raise interrupt
    if ordinary:
        raise ExceptionGroup("not every part of the container stopped cleanly", ordinary)


def modules_of(*members: Callable[..., Any] | type) -> list[ModuleType]:
    """Return the modules in which ``members`` and, for a class, its bases are written, for ``Lifecycle``."""
    found: dict[str, ModuleType] = {}
    for member in members:
        for part in inspect.getmro(member) if isinstance(member, type) else (member,):
            module = sys.modules.get(part.__module__)
            if module is not None and part.__module__ != "builtins":
                found[part.__module__] = module
    return list(found.values())
