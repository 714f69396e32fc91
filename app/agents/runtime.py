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
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import ModuleType
from typing import NoReturn

from app.agents.agent import Agent
from app.agents.errors import AgentError, DrainExceeded
from app.agents.server import AgentServer
from app.agents.signals import stop_on_signals
from app.containers import AgentContainer, ContainerError, Lifecycle
from app.containers.graph import AnyContainer
from app.containers.lifecycle import modules_of
from app.pools.errors import PoolError

log = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_DRAIN_EXCEEDED = 3


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
        drain_timeout: seconds for everything in flight to end, all agents together.
        stop_timeout: seconds for the pools to stop.

    Returns:
        the counts of the run.

    Raises:
        DrainExceeded: work in flight was cancelled because it did not end in time.
        ExceptionGroup: an agent failed, or several did; also what failed while stopping.
        ContainerError, PoolError: the container could not start.
    """
    members = [agent() if isinstance(agent, type) else agent for agent in agents]
    if not members:
        raise AgentError("no agents to run; give at least one Agent class")
    own = modules_of(*map(type, members))
    stop = stop or asyncio.Event()
    lifecycle = Lifecycle(
        AgentContainer() if container is None else container,
        modules=[*own, *modules],
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
        if not await _unless(stop, stack.enter_async_context(lifecycle)):
            return crew.summary
        try:
            if await _unless(stop, crew.start()):
                if on_ready is not None:
                    on_ready(crew.servers)
                await crew.serve_until(stop)
        finally:
            await crew.stop()
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
        self.summary = Summary()

    async def start(self) -> None:
        """Start each agent and have it serve before the next one starts."""
        for agent in self._agents:
            server = AgentServer(agent, self._container)
            self.servers.append(server)
            async with asyncio.timeout(self._start_timeout):
                await server.start()
            serving = asyncio.create_task(server.serve(), name=agent.name)
            self._serving[server] = serving
            ready = asyncio.ensure_future(server.ready())
            await asyncio.wait((serving, ready), return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            if serving.done():
                serving.result()
            log.info("%s is ready", agent.name)

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
        """Drain in reverse order within one budget, then call each ``on_stop``; raise what went wrong."""
        errors: list[Exception] = []
        deadline = time.monotonic() + self._drain_timeout
        for server in reversed(self.servers):
            errors += await self._drain(server, deadline)
            try:
                await server.stop()
            except Exception as error:  # noqa: BLE001 - collected, so that the rest is still stopped
                error.add_note(f"raised by on_stop of {server.agent.name}")
                errors.append(error)
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
        await asyncio.wait((serving,), timeout=max(0.0, deadline - time.monotonic()))
        left = server.in_flight
        self.summary.drained[name] = in_flight - left
        if not serving.done():
            serving.cancel()
            await asyncio.wait((serving,))
            self.summary.cancelled[name] = left
            return [DrainExceeded(f"{name}: {left} in flight did not end within {self._drain_timeout:g} s")]
        failure = None if serving.cancelled() else serving.exception()
        if isinstance(failure, ExceptionGroup) and len(failure.exceptions) == 1:
            failure = failure.exceptions[0]
        if isinstance(failure, Exception):
            failure.add_note(f"raised by {name}")
            return [failure]
        return []


async def _unless(stop: asyncio.Event, work: object) -> bool:
    """Await ``work``; if ``stop`` is set first, cancel it and return ``False``."""
    working = asyncio.ensure_future(work)  # type: ignore[call-overload]
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
            return True
        working.cancel()
        await asyncio.wait((working,))
        return False
    finally:
        working.cancel()
        stopping.cancel()


def main(
    *agents: Agent | type[Agent],
    container: AnyContainer | None = None,
    modules: Iterable[ModuleType] = (),
    drain_timeout: float = 10.0,
    stop_timeout: float = 10.0,
) -> NoReturn:
    """Run ``agents`` as this process: the last line of an agent's module.

    The process exits with 0 after a clean stop, with 1 if an agent or the container failed, and with 3 if
    work in flight did not end within ``drain_timeout``. A second signal ends it at once.

    Args:
        agents: instances, or classes that need no arguments, in the order in which they start.
        container: an ``AgentContainer``; one from ``poolwire.toml`` unless given.
        modules: further modules with ``@inject`` functions.
        drain_timeout: seconds for what is in flight to end.
        stop_timeout: seconds for the pools to stop.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(run(agents, container, modules=modules, drain_timeout=drain_timeout, stop_timeout=stop_timeout))
    except DrainExceeded as error:
        log.error("%s", error)
        _cut_off()
    except (AgentError, ContainerError, PoolError) as error:
        # Misconfigured: the message says what to do, and a traceback through the runtime would bury it.
        print(f"error: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except ExceptionGroup as errors:
        log.exception("the agents stopped after a failure")
        if errors.subgroup(DrainExceeded) or isinstance(errors.__context__, DrainExceeded):
            _cut_off()
        sys.exit(EXIT_FAILED)
    sys.exit(0)


def _cut_off() -> NoReturn:
    """Exit at once: a handler's thread that hangs would keep the interpreter from ending."""
    logging.shutdown()
    os._exit(EXIT_DRAIN_EXCEEDED)
