"""The demo's agents against a straight script, and against the same agents building every connection per call.

All three index a copy of the Python standard library's source folder, each in a process of its own: they walk it,
keep the same jobs table, send each job through ZMQ, read and split the same way, ask the same enricher over HTTP
once for each file, store the same rows, and publish what is done.

* ``agents``: the demo as it is, with leased connections, over ``ipc``.
* ``straight``: one coroutine, file after file, on one hand-held socket pair, SQLite connection and HTTP session.
* ``per call``: the demo's agents in a container whose pools open a connection for each call and close it after.
  What binds or subscribes is kept even there; so its publishers connect, and wait until they are subscribed to.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import zmq
from dependency_injector import providers
from harness import Figure, Runs, arguments, median, ratio, report
from sqlalchemy import Connection, NullPool, create_engine, event

from app.containers import AgentContainer, Pooled, Resources
from app.demo import Demo, demo_container, index_file
from app.demo import jobs as table
from app.demo.enricher import SAMPLE, Enricher
from app.demo.extractor import Extractor, read_and_split
from app.demo.folder import DEFAULT_SIZE_LIMIT, SkipFile
from app.demo.jobs import Rejected, Stored
from app.demo.scanner import survey
from app.pools.http_pool import HTTPPool
from app.pools.sql_pool import Database, SQLPool, get_sqlite_config
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool

BATCH = 16  # files in one transaction of the straight script; what the agents' writers gather is less
MEGABYTE = 1024


# The straight script


def _engine(index: Path) -> Any:
    engine = create_engine(f"sqlite:///{index}", poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


async def straight(folder: Path) -> None:
    """Index ``folder`` file after file."""
    index = index_file(folder)
    with SQLPool() as pool:  # only to lay out the table and to record the scan, which all contenders share
        database = Database(pool, get_sqlite_config(index))
        await table.prepare(database)
        found = survey(folder, await table.known(database))
        await table.record_scan(database, changed=found.changed, skipped=found.skipped)
        waiting = await table.queued(database)
    context = zmq.Context()
    work_in, work_out = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    news_in, news_out = context.socket(zmq.SUB), context.socket(zmq.PUB)
    work_in.bind("inproc://work")
    work_out.connect("inproc://work")
    news_out.bind("inproc://news")
    news_in.connect("inproc://news")
    news_in.subscribe(b"job.")
    enricher = Enricher()
    counted = 0
    with _engine(index).connect() as db:
        async with enricher.listening() as url, aiohttp.ClientSession(url) as session:
            for first in range(0, len(waiting), BATCH):
                batch = waiting[first : first + BATCH]
                with db.begin():
                    db.exec_driver_sql("UPDATE jobs SET attempts = attempts + 1 WHERE id = ?", [(j.id,) for j in batch])
                outcomes = []
                for job in batch:
                    work_out.send(orjson.dumps({"id": job.id, "path": job.path, "digest": job.digest}))
                    outcomes.append(await _outcome(session, folder, orjson.loads(work_in.recv())))
                with db.begin():
                    table.store(db, outcomes)
                for outcome in outcomes:
                    news_out.send_multipart([b"job.done", orjson.dumps({"id": outcome.id})])
                    news_in.recv_multipart()
                    counted += 1
    context.destroy(linger=0)
    assert counted == len(waiting)


async def _outcome(session: aiohttp.ClientSession, folder: Path, job: dict[str, Any]) -> Stored | Rejected:
    try:
        document, passages = read_and_split(folder, job["path"], job["digest"], DEFAULT_SIZE_LIMIT)
    except SkipFile as skip:
        return Rejected(job["id"], str(skip.reason), skip.detail)
    body = {"path": job["path"], "text": document.text[:SAMPLE]}
    async with session.post("/enrich", data=orjson.dumps(body)) as response:
        enrichment = orjson.loads(await response.read())
    return Stored(
        job["id"], job["path"], document.size, document.modified, document.digest, passages,
        enrichment["programming"], enrichment["natural"], enrichment["keywords"],
    )  # fmt: skip


# The agents


def _ipc(folder: Path) -> Any:
    sockets = Path(tempfile.mkdtemp(prefix="pw-", dir=folder.parent))
    return lambda name: f"ipc://{sockets / name}"


async def agents(folder: Path) -> None:
    """Index ``folder`` with the demo as it is."""
    async with Demo(folder, build=lambda index, url: demo_container(index, url, _ipc(folder))) as demo:
        await demo.indexed()


# The same agents, a connection per call


class PerCallZMQ(ZMQPool):
    """Sends through a context and a socket of its own for each message; what binds is kept."""

    receivers: dict[str, list[str]] = {}  # noqa: RUF012 - set once, before the pool is made

    def __init__(self) -> None:
        super().__init__()
        self._threads = ThreadPoolExecutor(8)
        self._turns = {endpoint: cycle(receivers) for endpoint, receivers in self.receivers.items()}

    def push(self, config: SocketConfig, *frames: bytes) -> None:
        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.connect(next(self._turns[config.endpoint]))
            socket.send_multipart(frames)

    def publish(self, config: SocketConfig, *frames: bytes) -> None:
        # In a thread, because waiting in the event loop would keep the subscribers there from subscribing.
        self._threads.submit(self._publish_once, self.receivers[config.endpoint], frames)

    def _publish_once(self, receivers: list[str], frames: tuple[bytes, ...]) -> None:
        with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
            socket.set(zmq.XPUB_VERBOSE, 1)  # else a topic that both subscribe to would be announced once
            for receiver in receivers:
                socket.connect(receiver)
            socket.set(zmq.RCVTIMEO, 500)
            try:
                for _ in range(len(receivers) + 1):  # the monitor subscribes to two topics, the scanner to one
                    socket.recv()
            except zmq.Again:
                return  # the demo has stopped, and nobody subscribes any more
            socket.send_multipart(frames)


class PerCallHTTP(HTTPPool):
    """Makes each request through a session of its own."""

    async def request_async(self, config: Any, method: str, path: str = "", **options: Any) -> Any:
        async with (
            aiohttp.ClientSession(config.base_url) as session,
            session.request(method, path, data=orjson.dumps(options["json"])) as response,
        ):
            body = await response.read()
            return _Response(response.status, body)


class _Response:
    retries = 0

    def __init__(self, status_code: int, body: bytes) -> None:
        self.status_code = status_code
        self.ok = status_code < 400
        self._body = body

    def json(self) -> Any:
        return orjson.loads(self._body)


class PerCallSQL(SQLPool):
    """Opens and closes a connection for each statement and each transaction."""

    def execute_query(self, config: Any, sql: str, params: Any = (), *options: Any) -> Any:
        with _engine(config.database).connect() as connection, connection.begin():
            result = connection.exec_driver_sql(sql, tuple(params))
            return result.fetchall() if result.returns_rows else []

    async def execute_query_async(self, config: Any, sql: str, params: Any = (), *options: Any) -> Any:
        return await asyncio.to_thread(self.execute_query, config, sql, params)

    def execute_many(self, config: Any, sql: str, rows: Any, *options: Any) -> Any:
        with _engine(config.database).connect() as connection, connection.begin():
            return connection.exec_driver_sql(sql, [tuple(row) for row in rows]).rowcount

    async def execute_many_async(self, config: Any, sql: str, rows: Any, *options: Any) -> Any:
        return await asyncio.to_thread(self.execute_many, config, sql, rows)

    def transaction(self, config: Any, readonly: bool = False, timeout: float | None = None) -> Any:
        return _Transaction(config, super().transaction(config, readonly, timeout))


class _Transaction:
    def __init__(self, config: Any, lease: Any) -> None:
        self._config = config
        self._lease = lease  # for asyncio, which only the laying out and the scan use: three times in all

    def __enter__(self) -> Connection:
        self._open = self._leave_it_open()
        return self._open.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    @contextmanager
    def _leave_it_open(self) -> Iterator[Connection]:
        with _engine(self._config.database).connect() as connection, connection.begin():
            yield connection

    async def __aenter__(self) -> Any:
        return await self._lease.__aenter__()

    async def __aexit__(self, *error: Any) -> Any:
        return await self._lease.__aexit__(*error)


class FirstExtractor(Extractor):
    endpoint = "jobs_1"


class SecondExtractor(Extractor):
    endpoint = "jobs_2"


async def per_call(folder: Path) -> None:
    """Index ``folder`` with the demo's agents and a connection for each call."""
    endpoint = _ipc(folder)

    def build(index: Path, url: str) -> AgentContainer:
        made: Resources = demo_container(index, url, endpoint).resources()
        bound = {
            name: SocketConfig(kind, endpoint(name), bind=True)
            for name, kind in {
                "jobs_1": SocketType.PULL,
                "jobs_2": SocketType.PULL,
                "scanner": SocketType.SUB,
                "monitor": SocketType.SUB,
            }.items()
        }
        PerCallZMQ.receivers = {
            endpoint("jobs"): [endpoint("jobs_1"), endpoint("jobs_2")],
            endpoint("progress"): [endpoint("scanner"), endpoint("monitor")],
        }
        kept = {name: replace(made.sockets[name]) for name in ("librarian", "assistant")}
        resources = Resources(
            databases=made.databases,
            apis=made.apis,
            peers=made.peers,
            publishers=made.publishers,
            sockets={**bound, **kept},
        )
        container = AgentContainer(resources=providers.Object(resources))
        container.zmq_pool.override(Pooled(PerCallZMQ))
        container.sql_pool.override(Pooled(PerCallSQL))
        container.http_pool.override(Pooled(PerCallHTTP))
        return container

    demo = Demo(folder, build=build)
    demo.extractors = [FirstExtractor(folder, 1), SecondExtractor(folder, 2)]
    async with demo:
        await demo.indexed()
        assert demo.scanner.sent_again == 0, "messages were lost: the comparison would be unfair"


# Running them

CONTENDERS = {"agents": agents, "straight": straight, "per call": per_call}


def contend(name: str, folder: Path) -> None:
    """Run one contender in this process and print its figures as JSON."""
    began = time.perf_counter()
    asyncio.run(CONTENDERS[name](folder))
    seconds = time.perf_counter() - began
    with _engine(index_file(folder)).connect() as connection:
        passages = connection.exec_driver_sql("SELECT count(*) FROM passages").scalar()
        states = dict(connection.exec_driver_sql("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())  # type: ignore[arg-type]
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE
    print(json.dumps({"seconds": seconds, "rss": rss, "passages": passages, "states": states}))


def _copy_of_the_standard_library(to: Path, *, quick: bool) -> int:
    """Copy the source files, every sixth one for a quick run; return how many."""
    source = Path(sysconfig.get_path("stdlib"))
    count = number = 0
    for where, folders, files in os.walk(source):
        folders[:] = sorted(set(folders) - {"site-packages", "__pycache__"})
        for name in sorted(files):
            number += 1
            if quick and number % 6:
                continue
            target = to / Path(where).relative_to(source) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(where, name), target)
            count += 1
    return count


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Run one contender on a fresh index in a process of its own."""
    shutil.rmtree(folder / ".poolwire", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, __file__, "--contender", name, str(folder)],
        stdout=subprocess.PIPE,
        check=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def main() -> None:
    quick = arguments(__doc__ or "").quick
    with tempfile.TemporaryDirectory(prefix="pw-") as temporary:
        folder = Path(temporary, "stdlib")
        count = _copy_of_the_standard_library(folder, quick=quick)
        runs: Runs = {name: [] for name in CONTENDERS}
        rss, results = 0.0, set()
        rounds = 1 if quick else 3
        for number in range(rounds):
            for name in CONTENDERS:
                figures = measure(name, folder)
                runs[name].append(figures["seconds"])
                rss = max(rss, figures["rss"]) if name == "agents" else rss
                results.add((figures["passages"], tuple(sorted(figures["states"].items()))))
                print(f"round {number + 1}: {name} {figures['seconds']:.2f} s", file=sys.stderr)
        assert len(results) == 1, f"the contenders did not do the same work: {results}"
    report(
        f"Indexing {count} files of the standard library, {next(iter(results))[0]} passages",
        [
            Figure("agents: speed against the straight script", ratio(runs, "straight", "agents"), 0.6),
            Figure("agents: speed against a connection per call", ratio(runs, "per call", "agents"), 3.0),
            Figure("agents: files per second", count / median(runs, "agents"), unit="/s"),
            Figure("agents: peak memory", rss, 300, at_least=False, unit="MB"),
        ],
        ("pyzmq", "SQLAlchemy", "aiohttp"),
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contender"]:
        contend(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
