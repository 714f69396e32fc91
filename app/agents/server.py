"""Serving one agent: receive, hand to its hook, answer, and drain when told to stop."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from enum import StrEnum
from functools import partial
from typing import Any

from app.agents import envelope
from app.agents.agent import Agent
from app.agents.errors import AgentDefinitionError, AgentStopping, MessageError
from app.containers import message_scope_async
from app.pools.zmq_pool import SocketConfig, SocketType

log = logging.getLogger(__name__)

Hook = Callable[..., Awaitable[Any]]

_CANCEL_GRACE = 1.0  # seconds
_REQUESTS = (SocketType.REP, SocketType.ROUTER)
_MESSAGES = (SocketType.SUB, SocketType.PULL)


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

    ``start`` calls ``on_start``; ``serve`` receives until ``drain`` is called; ``stop`` calls ``on_stop``.

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
        self._config = _endpoint(agent, container)
        _check(agent, self._config)
        self._in_flight: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(agent.concurrency)
        self._draining = asyncio.Event()
        self._listening = asyncio.Event()
        self._threads = ThreadPoolExecutor(agent.concurrency, thread_name_prefix=agent.name)
        self._handle = self._hook("on_request" if self._answers else "on_message") if self._config else None
        self._wants_topic = _takes_topic(agent)

    @property
    def in_flight(self) -> int:
        """How many requests and messages are being handled now."""
        return len(self._in_flight)

    @property
    def _answers(self) -> bool:
        return self._config is not None and self._config.socket_type in _REQUESTS

    def _hook(self, name: str) -> Hook:
        """Return the agent's hook as a coroutine function; a plain function runs in the agent's threads."""
        method = getattr(self.agent, name)
        if inspect.iscoroutinefunction(method):
            return method  # type: ignore[no-any-return]

        async def in_thread(*args: Any, **kwargs: Any) -> Any:
            loop = asyncio.get_running_loop()
            context = contextvars.copy_context()  # so that the thread works on the same message
            return await loop.run_in_executor(self._threads, partial(context.run, method, *args, **kwargs))

        return in_thread

    # Life

    async def start(self) -> None:
        """Call ``on_start``. What it raises is raised."""
        self.state = State.STARTING
        await self._hook("on_start")()

    async def serve(self) -> None:
        """Receive and handle until ``drain``; raises what ``run`` raises."""
        async with asyncio.TaskGroup() as tasks:
            if hasattr(self.agent, "run"):
                tasks.create_task(self._run())
            if self._config is not None:
                tasks.create_task(self._receive(self._config))
            else:
                self._listening.set()
            await self._listening.wait()
            self.state = State.READY

    async def ready(self) -> None:
        """Return when the agent's socket is bound or connected."""
        await self._listening.wait()

    def drain(self) -> None:
        """Accept nothing more. ``serve`` returns when what is in flight has ended."""
        if self.state is State.READY:
            self.state = State.DRAINING
        self._draining.set()

    async def stop(self) -> None:
        """Call ``on_stop``. What it raises is raised."""
        try:
            await self._hook("on_stop")()
            self.state = State.STOPPED
        except BaseException:
            self.state = State.FAILED
            raise
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)

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
        finally:
            work.cancel()
            draining.cancel()

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
            refusing: asyncio.Future[None] | None = None
            try:
                await asyncio.wait((accepting, draining), return_when=asyncio.FIRST_COMPLETED)
                accepting.cancel()
                await asyncio.wait((accepting,))
                if not accepting.cancelled():
                    accepting.result()
                if self._answers:
                    refusing = asyncio.ensure_future(self._refuse(socket))
                while self._in_flight:
                    await asyncio.wait(self._in_flight)
            except BaseException:
                for task in self._in_flight:
                    task.cancel()
                if self._in_flight:
                    # Their leases come back while the pools are still up; a handler that resists is left behind.
                    await asyncio.wait(self._in_flight, timeout=_CANCEL_GRACE)
                raise
            finally:
                for helper in (accepting, draining, refusing):
                    if helper is not None:
                        helper.cancel()

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
        answer = envelope.encode_error(AgentStopping(f"{self.agent.name} is stopping; the request was not executed"))
        while True:
            frames = await socket.recv_multipart()
            try:
                route, _ = envelope.split(frames)
            except MessageError:
                continue  # there is no way back to its sender
            await socket.send_multipart([*route, answer])

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
        except MessageError:
            self.failed += 1
            log.warning("%s dropped a message that is no request", self.agent.name, exc_info=True)
            return
        try:
            answer = envelope.encode(await self._in_scope(envelope.decode(body)))
            self.handled += 1
        except Exception as error:
            self.failed += 1
            log.exception("%s could not answer a request", self.agent.name)
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
        except Exception:
            self.failed += 1
            log.exception("%s could not handle a message", self.agent.name)


def _endpoint(agent: Agent, container: Any) -> SocketConfig | None:
    endpoint = agent.endpoint
    if isinstance(endpoint, str):
        sockets: Any = container.sockets
        config: SocketConfig = getattr(sockets, endpoint).config
        return config
    return endpoint


def _check(agent: Agent, config: SocketConfig | None) -> None:
    kind = type(agent).__name__
    if config is None:
        if not hasattr(agent, "run"):
            raise AgentDefinitionError(f"{kind} has neither an endpoint nor run(); give it one of them")
        return
    if config.socket_type not in (*_REQUESTS, *_MESSAGES):
        allowed = ", ".join(member.name for member in (*_REQUESTS, *_MESSAGES))
        raise AgentDefinitionError(
            f"{kind} receives on a socket of type {config.socket_type.name}; an agent's endpoint is one of {allowed}"
        )
    hook = "on_request" if config.socket_type in _REQUESTS else "on_message"
    if not hasattr(agent, hook):
        raise AgentDefinitionError(f"{kind} receives on {config.socket_type.name}, so it needs {hook}(self, message)")


def _takes_topic(agent: Any) -> bool:
    return hasattr(agent, "on_message") and "topic" in inspect.signature(agent.on_message).parameters
