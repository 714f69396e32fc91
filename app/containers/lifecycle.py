"""``Lifecycle``: wires a container, checks it, starts its parts in order, and stops them in reverse."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from types import ModuleType, TracebackType
from typing import Any, Self, TypeAlias, TypeVar

from dependency_injector import providers

from app.containers import graph
from app.containers.errors import LifecycleError, StartTimeoutError
from app.containers.graph import AnyContainer, AnyProvider
from app.containers.scopes import PerContainer
from app.containers.wiring import Wiring
from app.pools import Pool

T = TypeVar("T")

# Seconds that a part has to itself before the next one of its wave starts in another thread: most pools are
# ready sooner, and then one thread serves them all.
_HEAD_START = 0.002


class _PoolPart:
    """A pool, which is made when it starts."""

    def __init__(self, name: str, provider: Any) -> None:
        self.name = name
        self._provider = provider
        self._pool: Pool | None = None  # stays so if making it failed: then there is nothing to stop

    def start(self) -> None:
        self._pool = self._provider()
        self._pool.start()

    def stop(self, timeout: float) -> None:
        if self._pool is not None:
            self._pool.stop(timeout)

    async def start_async(self) -> None:
        self._pool = self._provider()
        await self._pool.start_async()

    async def stop_async(self, timeout: float) -> None:
        if self._pool is not None:
            await self._pool.stop_async(timeout)

    def forget(self) -> None:
        """Let the next start make a new pool."""
        self._provider.reset()


class _ResourcePart:
    """One of dependency-injector's resources."""

    def __init__(self, name: str, provider: Any) -> None:
        self.name = name
        self._provider = provider

    def start(self) -> None:
        if inspect.isawaitable(self._provider.init()):
            raise LifecycleError(f"{self.name} starts asynchronously; use `async with Lifecycle(...)`")

    def stop(self, timeout: float) -> None:
        self._provider.shutdown()

    async def start_async(self) -> None:
        done = self._provider.init()
        if inspect.isawaitable(done):
            await done

    async def stop_async(self, timeout: float) -> None:
        done = self._provider.shutdown()
        if inspect.isawaitable(done):
            await done

    def forget(self) -> None:
        """A resource forgets its object when it shuts down."""


class _KeptPart:
    """A lease that the container keeps: opened at its first use, so only its end is in the lifecycle."""

    def __init__(self, name: str, provider: PerContainer[Any]) -> None:
        self.name = name
        self._provider = provider

    def start(self) -> None:
        """There is nothing to open yet."""

    def stop(self, timeout: float) -> None:
        self._provider.close()

    async def start_async(self) -> None:
        """There is nothing to open yet."""

    async def stop_async(self, timeout: float) -> None:
        await self._provider.close_async()

    def forget(self) -> None:
        """Closing it was all."""


_Part: TypeAlias = _PoolPart | _ResourcePart | _KeptPart


def _part(name: str, provider: AnyProvider) -> _Part:
    if isinstance(provider, PerContainer):
        return _KeptPart(name, provider)
    return _ResourcePart(name, provider) if isinstance(provider, providers.BaseResource) else _PoolPart(name, provider)


class Lifecycle:
    """Runs a container for the time of a ``with`` or an ``async with`` block.

    Entering wires ``modules``, checks every marker in them, then starts the container's pools and resources:
    what others need first, what is independent at the same time. If one fails, those that had started, and
    the one that failed, are stopped in reverse, and its error is raised with theirs in its notes.

    Leaving stops them in reverse within one budget: each pool refuses new leases, waits for those out, and
    closes. One that fails does not keep the others from being stopped. A container that was stopped can be
    started again, with new pools.

    Args:
        container: an instance of a container.
        modules: the modules whose ``@inject`` functions the container serves.
        unchecked: classes and functions in them whose markers the container need not have.
        start_timeout: seconds for each part to start.
        stop_timeout: seconds for all parts to stop.

    Raises:
        UnresolvedMarkersError, CycleError: at the start, before anything was started.
        StartTimeoutError: a part took too long to start.
        LifecycleError: it runs already, or it is stopped in another event loop than it was started in.
        ExceptionGroup: at the stop, with the error of each part that failed to stop.
    """

    def __init__(
        self,
        container: AnyContainer,
        *,
        modules: Iterable[ModuleType] = (),
        unchecked: Iterable[Any] = (),
        start_timeout: float = 30.0,
        stop_timeout: float = 10.0,
    ) -> None:
        self.container = container
        self._wiring = Wiring(container, modules, unchecked)
        self.start_timeout = start_timeout
        self.stop_timeout = stop_timeout
        self.report: dict[str, float] = {}
        """How many seconds each part took to start, in the order in which they were ready."""
        self._waves: list[list[_Part]] = []  # what was started, or begun to be
        self._running = False
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    # With threads

    def __enter__(self) -> Self:
        waves = self._plan()
        # Not `with`: leaving the block would wait for a part that hangs.
        workers = ThreadPoolExecutor(max(map(len, waves), default=1), thread_name_prefix="poolwire-start")
        try:
            for wave in waves:
                self._start_wave(wave, workers)
        except BaseException as error:
            self._note(error, self._stop_all())
            raise
        finally:
            workers.shutdown(wait=False)
        return self

    def _start_wave(self, wave: list[_Part], workers: ThreadPoolExecutor) -> None:
        self._waves.append(wave)
        started = {}
        for part in wave:
            started[part] = workers.submit(self._timed, part)
            wait([started[part]], _HEAD_START)
        wait(started.values(), self.start_timeout)
        errors = [
            future.exception() if future.done() else StartTimeoutError(part.name, self.start_timeout)
            for part, future in started.items()
        ]
        self._raise_first(errors)

    def _timed(self, part: _Part) -> None:
        began = time.perf_counter()
        part.start()
        self.report[part.name] = time.perf_counter() - began

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None:
            raise LifecycleError("started with `async with`, so it is stopped with it too")
        self._raise(self._stop_all())

    def _stop_all(self) -> list[Exception]:
        deadline = time.monotonic() + self.stop_timeout
        errors: list[Exception] = []
        while self._waves:
            for part in reversed(self._waves.pop()):
                try:
                    part.stop(max(0.0, deadline - time.monotonic()))
                except Exception as error:  # noqa: BLE001 - collected, so that the rest is still stopped
                    errors.append(error)
                part.forget()
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
            self._note(error, await _to_its_end(self._stop_all_async()))
            raise
        return self

    async def _start_wave_async(self, wave: list[_Part]) -> None:
        self._waves.append(wave)
        results = await asyncio.gather(*map(self._timed_async, wave), return_exceptions=True)
        self._raise_first(results)

    async def _timed_async(self, part: _Part) -> None:
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
        if self._loop is not asyncio.get_running_loop():
            raise LifecycleError("started in another event loop; stop it in the loop that started it")
        self._raise(await _to_its_end(self._stop_all_async()))

    async def _stop_all_async(self) -> list[Exception]:
        deadline = time.monotonic() + self.stop_timeout
        errors: list[Exception] = []
        while self._waves:
            for part in reversed(self._waves.pop()):
                try:
                    await part.stop_async(max(0.0, deadline - time.monotonic()))
                except Exception as error:  # noqa: BLE001 - collected, so that the rest is still stopped
                    errors.append(error)
                part.forget()
        self._finish()
        return errors

    # Both

    def _plan(self) -> list[list[_Part]]:
        """Wire, check and order; nothing has been started when this raises."""
        with self._lock:
            if self._running:
                raise LifecycleError("the container runs already; one Lifecycle is entered once at a time")
            self._running = True
        self.report = {}
        try:
            self._wiring.connect()
            graph.refuse_captured_leases(self.container)
            return [[_part(*part) for part in wave] for wave in graph.start_order(self.container)]
        except BaseException:
            self._finish()
            raise

    def _finish(self) -> None:
        self._wiring.disconnect()
        self._running = False
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
    def _raise(errors: list[Exception]) -> None:
        if errors:
            raise ExceptionGroup("not every part of the container stopped cleanly", errors)


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` to its end even if the caller is cancelled meanwhile, and only then raise the cancellation."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except Exception:  # noqa: BLE001 - the task's own error, which `result` raises below
            break
    if cancelled is not None:
        raise cancelled
    return task.result()


def modules_of(*members: Callable[..., Any] | type) -> list[ModuleType]:
    """Return the modules in which ``members`` and, for a class, its bases are written, for ``Lifecycle``."""
    found: dict[str, ModuleType] = {}
    for member in members:
        for part in inspect.getmro(member) if isinstance(member, type) else (member,):
            module = sys.modules.get(part.__module__)
            if module is not None and part.__module__ != "builtins":
                found[part.__module__] = module
    return list(found.values())
