"""The parts of a container that start and stop: pools, resources, and leases that the container keeps."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from typing import Any, Protocol

from dependency_injector import providers

from app.containers.errors import LifecycleError
from app.containers.graph import AnyProvider
from app.containers.scopes import PerContainer
from app.containers.workers import DaemonWorkers
from app.pools import Pool
from app.pools.core.managed import ManagedPool


class Part(Protocol):
    """What ``Lifecycle`` starts and stops."""

    name: str

    @property
    def keeps_time(self) -> bool:
        """Whether it is known to start at once and to stop in time, so that no thread need watch over it."""

    def start(self) -> None:
        """Make ready."""

    def stop(self, timeout: float) -> None:
        """Close, within ``timeout`` seconds."""

    async def start_async(self) -> None:
        """Do what ``start`` does without blocking the event loop."""

    async def stop_async(self, timeout: float) -> None:
        """Do what ``stop`` does without blocking the event loop."""

    def give_up(self) -> None:
        """Learn that nobody waits for the start any more: whatever it still brings up is to be stopped."""

    def forget(self) -> None:
        """Let the next start make a new object."""


class PoolPart:
    """A pool, which is made when it starts."""

    def __init__(self, name: str, provider: Any) -> None:
        self.name = name
        self._provider = provider
        self._pool: Pool | None = None  # stays so if making it failed: then there is nothing to stop
        self._lock = threading.Lock()
        self._started = self._given_up = False

    @property
    def keeps_time(self) -> bool:
        """Whether the pool is known to start at once and to stop within its time limit."""
        kind = getattr(self._provider, "provides", None)
        return isinstance(kind, type) and issubclass(kind, ManagedPool)

    def start(self) -> None:
        self._pool = self._provider()
        if not hasattr(self._pool, "start"):
            raise LifecycleError(f"{self.name} starts asynchronously; use `async with Lifecycle(...)`")
        self._pool.start()
        if self._is_too_late():
            self._pool.stop()

    def stop(self, timeout: float) -> None:
        if self._pool is not None and hasattr(self._pool, "stop"):
            self._pool.stop(timeout)

    async def start_async(self) -> None:
        self._pool = self._provider()
        await _await(self._pool, "start")
        if self._is_too_late():
            await _await(self._pool, "stop")

    async def stop_async(self, timeout: float) -> None:
        if self._pool is not None:
            await _await(self._pool, "stop", timeout)

    def _is_too_late(self) -> bool:
        with self._lock:
            self._started = True
            return self._given_up

    def give_up(self) -> None:
        with self._lock:
            self._given_up = not self._started

    def forget(self) -> None:
        self._provider.reset()


async def _await(pool: Any, action: str, *args: Any) -> None:
    """Start or stop ``pool`` without blocking the loop: in a thread, if it has no asynchronous way."""
    method = getattr(pool, f"{action}_async", None)
    if method is not None:
        await method(*args)
        return
    workers = DaemonWorkers(f"poolwire-{action}")
    try:
        await asyncio.wrap_future(workers.submit(functools.partial(getattr(pool, action), *args)))
    finally:
        workers.close()


class ResourcePart:
    """One of dependency-injector's resources, which forgets its object when it shuts down."""

    keeps_time = False

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

    def give_up(self) -> None:
        """It starts at once, or holds nothing that would outlive the attempt."""

    def forget(self) -> None:
        """Nothing is kept after the stop."""


class KeptLeasePart:
    """A lease that the container keeps: opened at its first use, so only its end is in the lifecycle."""

    keeps_time = False

    def __init__(self, name: str, provider: PerContainer[Any]) -> None:
        self.name = name
        self._provider = provider

    def start(self) -> None:
        self._provider.begin(is_async=False)

    def stop(self, timeout: float) -> None:
        self._provider.close()

    async def start_async(self) -> None:
        self._provider.begin(is_async=True)

    async def stop_async(self, timeout: float) -> None:
        await self._provider.close_async()

    def give_up(self) -> None:
        """It starts at once, or holds nothing that would outlive the attempt."""

    def forget(self) -> None:
        """Nothing is kept after the stop."""


def part(name: str, provider: AnyProvider) -> Part:
    """Return the part that ``provider`` is, under the name that reports and errors use."""
    if isinstance(provider, PerContainer):
        return KeptLeasePart(name, provider)
    if isinstance(provider, providers.BaseResource):
        return ResourcePart(name, provider)
    return PoolPart(name, provider)
