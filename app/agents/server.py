"""Serving one agent: receive, hand to its hook, answer, and drain when told to stop."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from enum import StrEnum
from functools import partial
from typing import Any

from app.agents import envelope
from app.agents.agent import Agent
from app.agents.definition import ANSWERING, check_endpoint, endpoint_of
from app.agents.errors import AgentStopping, MessageError
from app.agents.failures import in_one_line
from app.agents.tasks import cut_off
from app.containers import message_scope_async
from app.containers.workers import DaemonWorkers
from app.pools.zmq_pool import SocketConfig, SocketType

log = logging.getLogger(__name__)

Hook = Callable[..., Awaitable[Any]]

_QUIET = 50  # milliseconds without a request after which none is left in the socket
_LAST_CALL = 0.8  # seconds for refusing those that are left; less than GRACE, which the close has in all


class State(StrEnum):
    """Where an agent is in its life."""

    CREATED = "created"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class AgentServer:
    """Runs the hooks of one agent.

    ``start`` calls ``on_start``; ``serve`` receives until ``drain`` is called, and refuses requests until
    ``close`` is; ``stop`` calls ``on_stop``.

    Args:
        agent: the agent.
        container: a started container, which has the agent's endpoint and the ZMQ pool.

    Raises:
        AgentDefinitionError: the agent's hooks do not fit its endpoint.
    """

    def __init__(self, agent: Agent, container: Any) -> None:
        self.agent = agent
        self.state = State.CREATED
        self.handled = 0
        """How many requests and messages were handled without an error."""
        self.failed = 0
        """How many raised one."""
        self._pool = container.zmq_pool()
        self._config = endpoint_of(agent, container)
        check_endpoint(agent, self._config)
        self._in_flight: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(agent.concurrency)
        self._draining = asyncio.Event()
        self._listening = asyncio.Event()
        self._idle = asyncio.Event()
        self._worked = asyncio.Event()
        self._closing = asyncio.Event()
        self._threads = DaemonWorkers(agent.name)
        self._handle = self._hook("on_request" if self._answers else "on_message") if self._config else None
        self._wants_topic = _takes_topic(agent)

    @property
    def in_flight(self) -> int:
        """How many requests and messages are being handled now."""
        return len(self._in_flight)

    @property
    def _answers(self) -> bool:
        return self._config is not None and self._config.socket_type in ANSWERING

    def _hook(self, name: str) -> Hook:
        """Return the agent's hook as a coroutine function; a plain function runs in the agent's threads."""
        method = getattr(self.agent, name)
        if inspect.iscoroutinefunction(method):
            return method  # type: ignore[no-any-return]

        async def in_thread(*args: Any, **kwargs: Any) -> Any:
            context = contextvars.copy_context()  # so that the thread works on the same message
            work = asyncio.wrap_future(self._threads.submit(partial(context.run, method, *args, **kwargs)))
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                if not work.done():
                    await asyncio.wait((work,))  # a thread cannot be cancelled; a second cancellation leaves it
                raise

        return in_thread

    # Life

    async def start(self) -> None:
        """Call ``on_start``. What it raises is raised."""
        self.state = State.STARTING
        await self._hook("on_start")()

    async def serve(self) -> None:
        """Receive and handle until ``drain``, refuse until ``close``; raises what ``run`` raises."""
        async with asyncio.TaskGroup() as tasks:
            if hasattr(self.agent, "run"):
                tasks.create_task(self._run())
            else:
                self._worked.set()
            if self._config is not None:
                tasks.create_task(self._receive(self._config))
            else:
                self._listening.set()
                self._idle.set()
            await self._listening.wait()
            self.state = State.READY

    async def ready(self) -> None:
        """Return when the agent's socket is bound or connected."""
        await self._listening.wait()

    def drain(self) -> None:
        """Accept nothing more, and let what is in flight end."""
        if self.state is State.READY:
            self.state = State.DRAINING
        self._draining.set()

    async def drained(self) -> None:
        """Return when nothing is in flight after ``drain`` and ``run`` has ended."""
        await self._idle.wait()
        await self._worked.wait()

    def close(self) -> None:
        """Let ``serve`` return when the requests that have come by now are refused."""
        self._closing.set()

    async def stop(self) -> None:
        """Call ``on_stop``. What it raises is raised."""
        try:
            await self._hook("on_stop")()
            self.state = State.STOPPED
        except BaseException:
            self.state = State.FAILED
            raise
        finally:
            self._threads.close()

    async def _run(self) -> None:
        run: Any = self.agent
        work = asyncio.ensure_future(run.run())
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait((work, draining), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                await asyncio.wait((work,))
            if not work.cancelled():
                work.result()
            self._worked.set()
        finally:
            await cut_off(work, draining)

    # Receiving

    async def _receive(self, config: SocketConfig) -> None:
        # A REP socket answers in lock-step, one request at a time; a ROUTER serves the same clients side by side.
        served = replace(config, socket_type=SocketType.ROUTER) if config.socket_type is SocketType.REP else config
        async with self._pool.socket(served) as socket:
            if config.socket_type is SocketType.SUB:
                for topic in self.agent.topics:
                    socket.subscribe(topic.encode())
            self._listening.set()
            accepting = asyncio.ensure_future(self._accept(socket))
            draining = asyncio.ensure_future(self._draining.wait())
            helpers: list[asyncio.Future[Any]] = [accepting, draining]
            try:
                await asyncio.wait(helpers, return_when=asyncio.FIRST_COMPLETED)
                await cut_off(accepting)
                if not accepting.cancelled():
                    accepting.result()
                refusing = [asyncio.ensure_future(self._refuse(socket))] if self._answers else []
                helpers += refusing
                while self._in_flight:
                    await asyncio.wait(self._in_flight)
                self._idle.set()
                await self._closing.wait()
                await cut_off(*refusing)
                if self._answers:
                    await self._refuse_the_last(socket)
            finally:
                # The leases of the handlers come back while the pools are still up.
                await cut_off(*helpers, *self._in_flight)
                if self.agent.may_drop:
                    await _drop_what_waits(socket)

    async def _accept(self, socket: Any) -> None:
        """Receive as long as a slot is free, so that a busy agent's queue pushes back on its senders."""
        while True:
            await self._slots.acquire()
            try:
                frames = await socket.recv_multipart()
            except BaseException:
                self._slots.release()
                raise
            task = asyncio.create_task(self._handle_one(socket, frames), name=f"{self.agent.name}-message")
            self._in_flight.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._slots.release()
        if not task.cancelled() and task.exception() is not None:
            log.error("%s could not send an answer", self.agent.name, exc_info=task.exception())

    async def _refuse(self, socket: Any) -> None:
        """Answer requests that come while the agent drains, so that their senders need not wait for nothing."""
        while True:
            await self._refuse_one(socket, await socket.recv_multipart())

    async def _refuse_the_last(self, socket: Any) -> None:
        """Answer the requests that wait in the socket, but not for ever those of someone who asks again at once."""
        deadline = time.monotonic() + _LAST_CALL
        while time.monotonic() < deadline and await socket.poll(_QUIET):
            await self._refuse_one(socket, await socket.recv_multipart())

    async def _refuse_one(self, socket: Any, frames: list[bytes]) -> None:
        try:
            route, _ = envelope.split(frames)
        except MessageError:
            return  # there is no way back to its sender
        refusal = AgentStopping(f"{self.agent.name} is stopping; the request was not executed")
        await socket.send_multipart([*route, envelope.encode_error(refusal)])

    # Handling

    async def _handle_one(self, socket: Any, frames: list[bytes]) -> None:
        if self._answers:
            await self._answer(socket, frames)
        else:
            await self._consume(frames)

    async def _in_scope(self, message: dict[str, Any], **more: Any) -> Any:
        assert self._handle is not None
        async with message_scope_async(**self.agent.context(message)):
            return await self._handle(message, **more)

    async def _answer(self, socket: Any, frames: list[bytes]) -> None:
        try:
            route, body = envelope.split(frames)
        except MessageError as error:
            self._note_failure("dropped a message that is no request", error)
            return
        try:
            answer = envelope.encode(await self._in_scope(envelope.decode(body)))
            self.handled += 1
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled(error):
                raise
            self._note_failure("could not answer a request", error)
            answer = envelope.encode_error(error)
        await socket.send_multipart([*route, answer])

    async def _consume(self, frames: list[bytes]) -> None:
        topic = frames[0].decode(errors="replace") if len(frames) > 1 else ""
        try:
            message = envelope.decode(frames[-1])
            if self._wants_topic:
                await self._in_scope(message, topic=topic)
            else:
                await self._in_scope(message)
            self.handled += 1
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled(error):
                raise
            self._note_failure("could not handle a message", error)

    def _note_failure(self, what: str, error: BaseException) -> None:
        self.failed += 1
        if line := in_one_line(error):  # or a database that is down would fill the log with tracebacks
            log.error("%s %s: %s", self.agent.name, what, line)
        else:
            log.error("%s %s", self.agent.name, what, exc_info=error)


async def _drop_what_waits(socket: Any) -> None:
    """Read the messages that nobody will handle, so that they do not count as lost; not for ever those of a pusher."""
    deadline = time.monotonic() + _LAST_CALL
    while time.monotonic() < deadline and await socket.poll(0):
        await socket.recv_multipart()


def _is_cancelled(error: BaseException) -> bool:
    """Whether this task is cancelled; a handler may raise ``CancelledError`` of its own, from a task it awaited."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _takes_topic(agent: Any) -> bool:
    return hasattr(agent, "on_message") and "topic" in inspect.signature(agent.on_message).parameters
