"""Agents in the test's own process, over real sockets."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dependency_injector import providers

from app.agents import Agent, AgentServer, Summary, run
from app.containers import AgentContainer, Resources
from app.pools.sql_pool import get_sqlite_config
from app.pools.zmq_pool import SocketConfig, SocketType


def container(**sockets: SocketConfig) -> Any:
    """Return a container with a database in memory and ``sockets``, each also as a peer or a publisher."""
    peers = {
        name: SocketConfig(SocketType.REQ, config.endpoint)
        for name, config in sockets.items()
        if config.socket_type is SocketType.REP
    }
    publishers = {
        name: SocketConfig(
            SocketType.PUB if config.socket_type is SocketType.SUB else SocketType.PUSH, config.endpoint, bind=True
        )
        for name, config in sockets.items()
        if config.socket_type in (SocketType.SUB, SocketType.PULL)
    }
    databases = {"main": get_sqlite_config(":memory:", application_name=uuid.uuid4().hex)}
    resources = Resources(databases=databases, sockets=sockets, peers=peers, publishers=publishers)
    return AgentContainer(resources=providers.Object(resources))


Running = tuple[list[AgentServer], asyncio.Event, asyncio.Task[Summary]]


def rep() -> SocketConfig:
    return SocketConfig(SocketType.REP, f"inproc://{uuid.uuid4().hex}", bind=True)


@asynccontextmanager
async def running(agents: list[Any], container: Any, **options: Any) -> AsyncIterator[Running]:
    """Run ``agents`` for the time of a block, and stop them."""
    stop = asyncio.Event()
    ready: asyncio.Future[list[AgentServer]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        run(agents, container, stop=stop, on_ready=ready.set_result, handle_signals=False, **options)
    )
    await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        yield ready.result(), stop, task
    finally:
        stop.set()
        await asyncio.wait((task,))


class Gated(Agent):
    endpoint = "echo"

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.entered = 0

    async def on_request(self, message: dict[str, Any]) -> dict[str, Any]:
        self.entered += 1
        await self.gate.wait()
        return {"number": message["number"]}


async def ask(wired: Any, name: str, message: dict[str, Any], timeout: float = 20) -> dict[str, Any]:
    answer: dict[str, Any] = await getattr(wired.peers, name)().ask_async(message, timeout=timeout)
    return answer
