"""The whole demo: its agents on one folder, in one process, through one container."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from app.agents import Agent, AgentServer, Summary, run
from app.containers import AgentContainer, Provide, inject
from app.demo import jobs
from app.demo.assistant import Assistant
from app.demo.container import demo_container
from app.demo.enricher import Enricher
from app.demo.extractor import Extractor
from app.demo.folder import DEFAULT_SIZE_LIMIT
from app.demo.librarian import Librarian
from app.demo.monitor import Monitor
from app.demo.place import index_file
from app.demo.scanner import Scanner
from app.pools import Pool
from app.pools.sql_pool import Database
from app.pools.zmq_pool import Peer

T = TypeVar("T")


class DemoStopped(Exception):
    """The demo was told to stop while something waited for it."""


@dataclass(frozen=True)
class DemoSettings:
    """How the demo behaves.

    Attributes:
        failure_rate: the share of requests, 0 to 1, that the enricher refuses.
        delay: seconds that each request to the enricher takes longer.
        size_limit: bytes above which a file is left out.
        only: names of entries of the folder outside of which nothing is indexed; all of them if empty.
        patience: seconds after which a job that was sent and not heard of is looked up.
        retry_delay: seconds before the second attempt at a job that failed; it doubles with each.
        extractors: how many there are.
        drain_timeout: seconds for what is in flight to end when the demo stops.
    """

    failure_rate: float = 0.0
    delay: float = 0.0
    size_limit: int = DEFAULT_SIZE_LIMIT
    only: tuple[str, ...] = ()
    patience: float = 10.0
    retry_delay: float = 0.25
    extractors: int = 2
    drain_timeout: float = 10.0


class Demo:
    """Runs the agents for the time of an ``async with`` block. They index the folder and answer questions.

    Args:
        folder: an existing folder.
        settings: how to behave.
        stop: set it to stop from outside; whatever waits for the demo then raises ``DemoStopped``.
        build: makes the container from the index's file and the enricher's URL.
    """

    def __init__(
        self,
        folder: Path,
        settings: DemoSettings | None = None,
        *,
        stop: asyncio.Event | None = None,
        build: Callable[[Path, str], AgentContainer] = demo_container,
    ) -> None:
        self.folder = folder
        self.settings = settings = settings or DemoSettings()
        self.index = index_file(folder)
        self.enricher = Enricher(settings.failure_rate, settings.delay)
        self.monitor = Monitor()
        self.scanner = Scanner(
            folder,
            size_limit=settings.size_limit,
            only=settings.only,
            patience=settings.patience,
            retry_delay=settings.retry_delay,
        )
        self.extractors = [
            Extractor(folder, number, size_limit=settings.size_limit) for number in range(1, settings.extractors + 1)
        ]
        self.servers: list[AgentServer] = []
        """The servers of the agents, once they serve."""
        self.summary: Summary | None = None
        """What the run came to, once it has stopped."""
        self._stop = stop or asyncio.Event()
        self._build = build
        self._stack = AsyncExitStack()
        self._container: AgentContainer | None = None
        self._run: asyncio.Task[Summary] | None = None

    @property
    def agents(self) -> list[Agent]:
        """The agents in the order in which they start; they drain in reverse, each before those it relies on."""
        return [self.enricher, Librarian(), Assistant(), self.monitor, *self.extractors, self.scanner]

    async def __aenter__(self) -> Self:
        url = await self._stack.enter_async_context(self.enricher.listening())
        self._container = self._build(self.index, url)
        ready = asyncio.Event()

        def on_ready(servers: list[AgentServer]) -> None:
            self.servers = servers
            ready.set()

        self._run = asyncio.create_task(
            run(
                self.agents,
                self._container,
                modules=[sys.modules[__name__]],
                stop=self._stop,
                on_ready=on_ready,
                handle_signals=False,
                drain_timeout=self.settings.drain_timeout,
            )
        )
        try:
            await self.until_stopped(ready.wait())
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._run is not None
        self._stop.set()
        async with self._stack:
            self.summary = await self._run

    async def indexed(self) -> None:
        """Return when every file of the folder is in the index or left out for a reason.

        Raises:
            DemoStopped: the demo was told to stop before that.
        """
        await self.until_stopped(self.scanner.finished.wait())

    async def ask(self, question: str) -> dict[str, Any]:
        """Return what the assistant answers: an ``Answer`` as JSON has it.

        Raises:
            DemoStopped: the demo was told to stop before that.
            PoolError: the assistant did not answer, or could not.
        """
        return await self.until_stopped(_ask(question))

    async def report(self) -> dict[str, Any]:
        """Return what the jobs table says: the number of jobs in each state, of passages, and what is left out."""
        return await self.until_stopped(_report())

    def pools(self) -> dict[str, dict[str, Any]]:
        """Return the metrics of each pool by its name."""
        assert self._container is not None
        pools: dict[str, Pool] = {
            "zmq": self._container.zmq_pool(),
            "sql": self._container.sql_pool(),
            "http": self._container.http_pool(),
        }
        return {name: dict(pool.get_stats()["metrics"]) for name, pool in pools.items()}

    @property
    def finished_jobs(self) -> int:
        """How many jobs the extractors have finished in this run."""
        return sum(extractor.finished for extractor in self.extractors)

    async def until_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work``; raise ``DemoStopped``, or what ended the agents, if they end first."""
        assert self._run is not None
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((working, stopping, self._run), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if self._run.done():
                self._run.result()
            raise DemoStopped
        finally:
            working.cancel()
            stopping.cancel()


@inject
async def _ask(question: str, assistant: Peer = Provide["peers.assistant"]) -> dict[str, Any]:
    return await assistant.ask_async({"question": question})


@inject
async def _report(db: Database = Provide["databases.library.handle"]) -> dict[str, Any]:
    return {"jobs": await jobs.counts(db), "left_out": await jobs.left_out(db)}
