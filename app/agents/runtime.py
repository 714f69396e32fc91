"""Running agents: build the container, start, serve, drain and stop, in one process and one event loop.

The order is nameko's: agents start after the pools, one after the other as they are listed; they drain in
reverse, so an agent that asks another one is finished while that one still answers; the pools stop last.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NoReturn

from app.agents.agent import Agent
from app.agents.definition import check_modules, made
from app.agents.errors import AgentError, DrainExceeded
from app.agents.failures import complaints
from app.agents.server import AgentServer
from app.agents.signals import Watchdog, stop_on_signals
from app.agents.tasks import GRACE, cut_off
from app.containers import AgentContainer, ContainerError, Lifecycle, StartTimeoutError
from app.containers.graph import AnyContainer
from app.containers.lifecycle import modules_of
from app.containers.tasks import to_its_end
from app.pools.errors import PoolError

log = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_DRAIN_EXCEEDED = 3

_WATCHDOG_GRACE = 5.0  # seconds


@dataclass
class Summary:
    """What a run of agents came to.

    Attributes:
        handled: requests and messages handled without an error, by agent name.
        failed: requests and messages that raised one, by agent name.
        drained: how many were in flight when the stop began and ended in time, by agent name.
        cancelled: how many did not, by agent name.
        signal: the signal that stopped the run, if one did.
    """

    handled: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    drained: dict[str, int] = field(default_factory=dict)
    cancelled: dict[str, int] = field(default_factory=dict)
    signal: signal.Signals | None = None


async def run(
    agents: Sequence[Agent | type[Agent]],
    container: AnyContainer | None = None,
    *,
    modules: Iterable[ModuleType] = (),
    stop: asyncio.Event | None = None,
    on_ready: Callable[[list[AgentServer]], None] | None = None,
    handle_signals: bool = True,
    start_timeout: float = 30.0,
    drain_timeout: float = 10.0,
    stop_timeout: float = 10.0,
) -> Summary:
    """Run ``agents`` until a signal, until ``stop`` is set, or until all have ended their own work.

    Args:
        agents: instances, or classes that need no arguments, in the order in which they start.
        container: an ``AgentContainer``, not started yet; one from ``poolwire.toml`` unless given.
        modules: further modules with ``@inject`` functions; those of the agents' classes are wired anyway.
        stop: set it to stop from within.
        on_ready: called once when every agent serves, with their servers.
        handle_signals: whether SIGTERM and SIGINT stop the agents. Only in the main thread.
        start_timeout: seconds for each pool and each ``on_start``.
        drain_timeout: seconds for everything in flight and every ``on_stop`` to end, all agents together.
        stop_timeout: seconds for the pools to stop.

    Returns:
        the counts of the run.

    Raises:
        AgentDefinitionError: an agent lacks something, or two have one name.
        DrainExceeded: work in flight, or a hook, was cut off because it did not end in time.
        ExceptionGroup: an agent failed, or several did; also what failed while stopping.
        ContainerError, PoolError: the container could not start.
    """
    members = made(agents)
    further = check_modules(modules)
    own = modules_of(*map(type, members))
    stop = stop or asyncio.Event()
    lifecycle = Lifecycle(
        AgentContainer() if container is None else container,
        modules=[*own, *further],
        unchecked=_agents_in(own) - {base for member in members for base in type(member).__mro__},
        start_timeout=start_timeout,
        stop_timeout=stop_timeout,
    )
    crew = _Crew(members, lifecycle.container, start_timeout, drain_timeout)

    def on_signal(number: signal.Signals) -> None:
        crew.summary.signal = number
        stop.set()

    async with AsyncExitStack() as stack:
        if handle_signals:
            stack.enter_context(stop_on_signals(on_signal))
        # The whole start gives way to a stop: a signal during a slow connect must not wait for it.
        if not await _unless(stop, stack.enter_async_context(lifecycle), stop_timeout + GRACE):
            return crew.summary
        try:
            if await _unless(stop, crew.start(), drain_timeout + 2 * GRACE):
                if on_ready is not None:
                    on_ready(crew.servers)
                await crew.serve_until(stop)
        finally:
            await to_its_end(crew.stop())
    return crew.summary


def _agents_in(modules: Iterable[ModuleType]) -> set[type]:
    """Return the agent classes that ``modules`` hold: those that do not run here need nothing of the container."""
    held = (member for module in modules for member in list(vars(module).values()))
    return {member for member in held if isinstance(member, type) and issubclass(member, Agent)}


class _Crew:
    """The agents of one run, between the start and the stop of their container."""

    def __init__(
        self, agents: Sequence[Agent], container: AnyContainer, start_timeout: float, drain_timeout: float
    ) -> None:
        self._agents = agents
        self._container = container
        self._start_timeout = start_timeout
        self._drain_timeout = drain_timeout
        self.servers: list[AgentServer] = []
        self._serving: dict[AgentServer, asyncio.Task[None]] = {}
        self._still_starting: set[AgentServer] = set()
        self.summary = Summary()

    async def start(self) -> None:
        """Start each agent and have it serve before the next one starts."""
        for server in [AgentServer(agent, self._container) for agent in self._agents]:
            self.servers.append(server)
            await self._call_on_start(server)
            serving = asyncio.create_task(server.serve(), name=server.agent.name)
            self._serving[server] = serving
            ready = asyncio.ensure_future(server.ready())
            try:
                await asyncio.wait((serving, ready), return_when=asyncio.FIRST_COMPLETED)
            finally:
                ready.cancel()
            if serving.done():
                serving.result()
            log.info("%s is ready", server.agent.name)

    async def _call_on_start(self, server: AgentServer) -> None:
        starting = asyncio.create_task(server.start())
        try:
            await asyncio.wait((starting,), timeout=self._start_timeout)
            timed_out = not starting.done()
        finally:
            # It has to end before `on_stop` may be called.
            if not await cut_off(starting, grace=max(GRACE, self._drain_timeout)):
                self._still_starting.add(server)
        if timed_out:
            raise StartTimeoutError(f"on_start of {server.agent.name}", self._start_timeout)
        if starting.cancelled():
            raise AgentError(f"on_start of {server.agent.name} raised CancelledError")
        starting.result()

    async def serve_until(self, stop: asyncio.Event) -> None:
        """Return at a stop, when an agent fails, or when all have ended."""
        stopping = asyncio.ensure_future(stop.wait())
        try:
            pending: set[asyncio.Task[None]] = set(self._serving.values())
            while pending and not stopping.done():
                done, _ = await asyncio.wait({*pending, stopping}, return_when=asyncio.FIRST_COMPLETED)
                pending -= done
                if any(not task.cancelled() and task.exception() for task in done - {stopping}):
                    return
        finally:
            stopping.cancel()

    async def stop(self) -> None:
        """Drain in reverse order within one budget, calling each ``on_stop``; raise what went wrong."""
        errors: list[Exception] = []
        deadline = time.monotonic() + self._drain_timeout
        for server in reversed(self.servers):
            errors += await self._drain(server, deadline)
            errors += await self._call_on_stop(server, deadline)
        # Only now, so that each one refuses requests as long as any other still works.
        await asyncio.gather(*map(self._close, self._serving))
        for server in self.servers:
            self.summary.handled[server.agent.name] = server.handled
            self.summary.failed[server.agent.name] = server.failed
        if len(errors) == 1 and isinstance(errors[0], DrainExceeded):
            raise errors[0]
        if errors:
            raise ExceptionGroup("agents failed", errors)

    async def _drain(self, server: AgentServer, deadline: float) -> list[Exception]:
        serving = self._serving.get(server)
        if serving is None:
            return []
        name = server.agent.name
        in_flight = server.in_flight
        server.drain()
        drained = asyncio.ensure_future(server.drained())
        either = (serving, drained)
        await asyncio.wait(either, timeout=max(0.0, deadline - time.monotonic()), return_when=asyncio.FIRST_COMPLETED)
        left = server.in_flight
        if not left:  # an idle agent exceeds nothing, however little time there is
            await asyncio.wait(either, timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
        self.summary.drained[name] = in_flight - left
        in_time = serving.done() or drained.done()
        drained.cancel()
        if not in_time:
            await cut_off(serving, grace=3 * GRACE)
            self.summary.cancelled[name] = left
            what = f"{left} in flight" if left else "run()"
            return [DrainExceeded(f"{name}: {what} did not end within {self._drain_timeout:g} s")]
        failure = serving.exception() if serving.done() and not serving.cancelled() else None
        if isinstance(failure, ExceptionGroup) and len(failure.exceptions) == 1:
            failure = failure.exceptions[0]
        if isinstance(failure, Exception):
            failure.add_note(f"raised by {name}")
            return [failure]
        return []

    async def _call_on_stop(self, server: AgentServer, deadline: float) -> list[Exception]:
        name = server.agent.name
        if server in self._still_starting:
            return [DrainExceeded(f"{name}: on_start did not end when it was cancelled; on_stop was not called")]
        stopping = asyncio.create_task(server.stop())
        limit = max(GRACE, deadline - time.monotonic())
        await asyncio.wait((stopping,), timeout=limit)
        if not stopping.done():
            await cut_off(stopping)
            return [DrainExceeded(f"{name}: on_stop did not end within {limit:.1f} s")]
        failure = AgentError("CancelledError") if stopping.cancelled() else stopping.exception()
        if not isinstance(failure, Exception):
            return []
        failure.add_note(f"raised by on_stop of {name}")
        return [failure]

    async def _close(self, server: AgentServer) -> None:
        server.close()
        serving = self._serving[server]
        await asyncio.wait((serving,), timeout=GRACE)
        await cut_off(serving)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, Any], grace: float) -> bool:
    """Await ``work``; if ``stop`` is set first, cancel it, await its end for ``grace`` seconds, return ``False``."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        ended = await cut_off(working, grace=grace)
    if not ended:
        raise DrainExceeded(f"the start did not end within {grace:g} s after it was told to")
    if not working.cancelled():
        working.result()
    return not stop.is_set()


def main(
    *agents: Agent | type[Agent],
    container: AnyContainer | None = None,
    modules: Iterable[ModuleType] = (),
    start_timeout: float = 30.0,
    drain_timeout: float = 10.0,
    stop_timeout: float = 10.0,
) -> NoReturn:
    """Run ``agents`` as this process: the last line of an agent's module.

    The process exits with 0 after a clean stop, with 1 if an agent or the container failed, and with 3 if
    work was cut off: it did not end within ``drain_timeout``, or the whole stop took 5 seconds longer than
    ``drain_timeout`` and ``stop_timeout`` together. A second signal ends it at once.

    Args:
        agents: instances, or classes that need no arguments, in the order in which they start.
        container: an ``AgentContainer``; one from ``poolwire.toml`` unless given.
        modules: further modules with ``@inject`` functions.
        start_timeout: seconds for each pool and each ``on_start``.
        drain_timeout: seconds for what is in flight to end, and for every ``on_stop``.
        stop_timeout: seconds for the pools to stop.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Up to the very end of the process, which waits for threads that nobody here knows of.
    watchdog = Watchdog(drain_timeout + stop_timeout + _WATCHDOG_GRACE, EXIT_DRAIN_EXCEEDED)

    async def run_all() -> None:
        stop = asyncio.Event()
        with stop_on_signals(lambda _: stop.set(), at_once=watchdog.arm):
            try:
                await run(
                    agents,
                    container,
                    modules=modules,
                    stop=stop,
                    handle_signals=False,
                    start_timeout=start_timeout,
                    drain_timeout=drain_timeout,
                    stop_timeout=stop_timeout,
                )
            except Exception as error:
                if _was_cut_off(error):
                    _cut_off(error)  # in the loop, whose own end would wait for what resists
                raise

    try:
        asyncio.run(run_all())
    except (AgentError, ContainerError, PoolError, ExceptionGroup) as error:
        if not _tell(error):
            log.exception("the agents stopped after a failure")
        sys.exit(EXIT_FAILED)
    sys.exit(0)


def _tell(error: Exception) -> bool:
    """Print what ended the agents, a line for each failure; return whether that says enough."""
    told = complaints(error)
    for text in told:
        print(f"error: {text}", file=sys.stderr)
    return bool(told)


def _was_cut_off(error: BaseException | None) -> bool:
    """Whether work was cut off on the way to ``error``; another one may have been raised after it."""
    while error is not None:
        if isinstance(error, DrainExceeded) or (
            isinstance(error, BaseExceptionGroup) and error.subgroup(DrainExceeded) is not None
        ):
            return True
        error = error.__context__
    return False


def _cut_off(error: Exception) -> NoReturn:
    """Exit at once: a thread that hangs, or a task that resists, would keep the process from ending."""
    if error.__context__ is not None or not _tell(error):
        log.error("the agents stopped after a failure, and work was cut off", exc_info=error)
    try:
        logging.shutdown()
        sys.stdout.flush()
    finally:
        os._exit(EXIT_DRAIN_EXCEEDED)
