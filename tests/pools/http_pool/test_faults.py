"""What goes wrong in networks and processes, and what must not go wrong because of it."""

import asyncio
import gc
import gzip
import os
import random
import resource
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import requests

from app.pools.errors import HTTPUnavailable, LeaseLeaked, PoolClosed, ResponseTooLarge
from app.pools.http_pool import HTTPConfig, HTTPPool
from tests.pools.http_pool.conftest import Ask
from tests.support.misbehaving import MisbehavingServer, misbehaving_server
from tests.support.waiting import eventually, eventually_async

MEGABYTES = 1 << 20
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("path", ["/bomb?mb=200", "/endless", "/large?size=70000000"])
async def test_a_body_above_the_limit_is_refused_before_it_fills_memory(
    ask: Ask, pool: HTTPPool, config: HTTPConfig, path: str
) -> None:
    """A bomb, an endless body and a large one raise ResponseTooLarge, having used little more than the limit."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ResponseTooLarge, match=f"more than {8 * MEGABYTES} bytes"):
        await ask(replace(config, max_response_size=8 * MEGABYTES), "GET", path)
    if not path.startswith("/large"):  # which the server makes, in this process
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
    assert pool.get_stats()["metrics"]["active_connections"] == 0


ENCODINGS = {
    "gzip": lambda data: gzip.compress(data, 9),
    "deflate": lambda data: zlib.compress(data, 9),
    "raw deflate": lambda data: zlib.compress(data, 9)[2:-4],
}


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_bombs_of_every_kind_are_refused(ask: Ask, pool: HTTPPool, config: HTTPConfig, encoding: str) -> None:
    """Whatever compresses a bomb, requests, streams and sessions end above the limit."""
    packed = ENCODINGS[encoding](bytes(64 * MEGABYTES))
    limited = replace(config, max_response_size=MEGABYTES, max_retries=0)
    options: dict[str, Any] = {"params": {"encoding": encoding.removeprefix("raw ")}, "data": packed}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ResponseTooLarge):
        await ask(limited, "PUT", "/body", **options)
    with pytest.raises(ResponseTooLarge), pool.stream(limited, "PUT", "/body", **options) as response:
        response.read()
    async with pool.stream(limited, "PUT", "/body", **options) as streamed:
        with pytest.raises(ResponseTooLarge):
            await streamed.read()
    with pool.session(limited) as session, pytest.raises(requests.RequestException):
        session.put("/body", **options)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 48 * 1024


async def test_a_large_body_within_the_limit_is_whole(ask: Ask, config: HTTPConfig) -> None:
    """A body up to the limit comes whole, compressed or not; HEAD is not refused for a body it does not have."""
    limited = replace(config, max_response_size=2 * MEGABYTES)
    assert (await ask(limited, "GET", "/bomb?mb=2")).content == bytes(2 * MEGABYTES)
    assert len((await ask(limited, "GET", f"/large?size={2 * MEGABYTES}")).content) == 2 * MEGABYTES
    assert (await ask(limited, "HEAD", f"/large?size={9 * MEGABYTES}")).ok


async def test_a_connection_that_the_server_closed_is_not_used_again(
    ask: Ask, config: HTTPConfig, server: MisbehavingServer
) -> None:
    """A POST after the server closed the idle connection opens a new one and succeeds."""
    for _ in range(5):
        assert (await ask(config, "POST", "/close", json={})).ok
        await eventually_async(lambda: server.connected == 0)
        for _ in range(2):
            await asyncio.sleep(0)  # the loop looks at its sockets once more
    assert server.accepted == 5


async def test_an_idle_connection_is_dropped_before_the_server_drops_it(ask: Ask) -> None:
    """With keepalive below the server's limit no POST meets a connection that is being closed."""
    with misbehaving_server(close_idle=0.2) as server:
        config = HTTPConfig(server.url, keepalive=0.05, max_retries=0)
        for i in range(20):
            assert (await ask(config, "POST", "/echo", json={})).ok
            await asyncio.sleep(0.19 + (i % 5) * 0.005)
        assert server.accepted == 20


async def test_cancelled_requests_leak_nothing(pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer) -> None:
    """Requests cancelled at random moments leave nothing checked out, and the next ones get their own answers."""
    chance = random.Random(5)
    config = replace(config, max_connections=8, max_concurrency=6)
    for _ in range(5):
        tasks = [
            asyncio.create_task(pool.request_async(config, "GET", f"/slow?s={chance.random() / 100}"))
            for _ in range(60)
        ]
        for task in chance.sample(tasks, 40):
            asyncio.get_running_loop().call_later(chance.random() / 20, task.cancel)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) or each.status_code == 200 for each in outcomes)  # type: ignore[union-attr]
    figures = pool.get_stats()["pools"][server.url]
    assert (figures["active"], figures["in_flight"], figures["queued"]) == (0, 0, 0)
    answers = await asyncio.gather(*(pool.request_async(config, "GET", f"/echo?i={i}") for i in range(100)))
    assert [each.json()["target"] for each in answers] == [f"/echo?i={i}" for i in range(100)]


def test_threads_and_loops_at_once_each_get_their_own_answers(pool: HTTPPool, config: HTTPConfig) -> None:
    """Threads and several event loops use one pool at the same time, and nobody gets another's answer."""

    def sync(name: str) -> None:
        for i in range(50):
            assert pool.request(config, "GET", f"/echo?{name}-{i}").json()["target"] == f"/echo?{name}-{i}"

    async def tasks(name: str) -> None:
        for i in range(5):
            answers = await asyncio.gather(
                *(pool.request_async(config, "GET", f"/echo?{name}-{i}-{j}") for j in range(20))
            )
            assert [each.json()["target"] for each in answers] == [f"/echo?{name}-{i}-{j}" for j in range(20)]

    with ThreadPoolExecutor(12) as threads:
        running = [threads.submit(sync, f"thread{i}") for i in range(8)]
        running += [threads.submit(lambda i=i: asyncio.run(tasks(f"loop{i}"))) for i in range(4)]
        for each in running:
            each.result(60)
    assert pool.get_stats()["metrics"]["active_connections"] == 0


def test_stop_waits_for_what_is_under_way(config: HTTPConfig, server: MisbehavingServer) -> None:
    """stop lets a request in flight end, and names who still holds a connection when its time is up."""
    pool = HTTPPool()
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(pool.request(config, "GET", "/slow?s=0.5").status_code))
    asking.start()
    eventually(lambda: server.requests_to("/slow"))
    pool.stop()
    asking.join(10)
    assert answers == [200]

    pool = HTTPPool()
    with pool.stream(config, "GET", "/events?n=1&then=hang"):
        with pytest.raises(LeaseLeaked, match=r"test_faults\.py"):
            pool.stop(timeout=0.1)
        with pytest.raises(PoolClosed):
            pool.request(config, "GET", "/echo")


async def test_stop_async_waits_for_tasks(config: HTTPConfig, server: MisbehavingServer) -> None:
    """stop_async lets asynchronous requests end while the loop runs on."""
    pool = HTTPPool()
    asking = asyncio.create_task(pool.request_async(config, "GET", "/slow?s=0.5"))
    await eventually_async(lambda: server.requests_to("/slow"))
    await pool.stop_async()
    assert (await asking).ok
    await eventually_async(lambda: server.connected == 0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(
    pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer
) -> None:
    """Parent and child ask at the same time, and each reads its own answers; the parent's connections live on."""
    for i in range(3):
        pool.request(config, "GET", f"/echo?before={i}")
    accepted = server.accepted
    child = os.fork()
    name = "child" if child == 0 else "parent"
    wrong = 0
    try:
        for i in range(30):
            wrong += pool.request(config, "GET", f"/echo?{name}={i}").json()["target"] != f"/echo?{name}={i}"
        if child == 0:
            wrong += pool.get_stats()["pools"][server.url]["requests"] != 30
    except BaseException:
        wrong += 1
        if child:
            raise
    finally:
        if child == 0:
            os._exit(min(wrong, 255))
    _, status = os.waitpid(child, 0)
    assert (wrong, os.waitstatus_to_exitcode(status)) == (0, 0)
    assert server.accepted == accepted + 1


SCRIPT = """
import asyncio, sys
from app.pools.http_pool import HTTPConfig, get_http_pool
config = HTTPConfig(sys.argv[1], ca=sys.argv[2])

async def ask():
    answers = await asyncio.gather(*(get_http_pool().request_async(config, "GET", "/echo") for _ in range(5)))
    async with get_http_pool().sse(config, "GET", "/events?n=3&then=hang") as events:
        print((await anext(events)).data, {each.status_code for each in answers})

get_http_pool().request(config, "GET", "/echo")
with get_http_pool().session(config) as session:
    session.get("/echo")
{ending}
"""
ENDINGS = {
    "run": "asyncio.run(ask()); asyncio.run(ask())",
    "uvloop": "import uvloop; uvloop.run(ask()); uvloop.run(ask())",
    "stop": "asyncio.run(ask()); get_http_pool().stop()",
    "bare loop": (
        "loop = asyncio.new_event_loop(); loop.run_until_complete(ask())\nget_http_pool().stop(); loop.close()"
    ),
    "stop within": (
        "async def main():\n    await ask(); await get_http_pool().stop_async(); await ask(); get_http_pool().stop()\n"
        "asyncio.run(main())"
    ),
}


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_program_ends_without_warnings(ending: str, tls: bool) -> None:
    """However a program ends, no session, connection or task is reported as unclosed, in development mode too."""
    with misbehaving_server(tls=tls) as server:
        code = SCRIPT.replace("{ending}", ENDINGS[ending])
        authority = ROOT / "tests/support/tls/ca.pem"
        ran = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", code, server.url, str(authority)],
            capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
        )  # fmt: skip
    # asyncio's development mode also reports every step that a busy machine made slow.
    assert [line for line in ran.stderr.splitlines() if not line.startswith("Executing <")] == []
    assert ran.returncode == 0
    assert '{"token": 0} {200}' in ran.stdout


def test_a_program_that_stops_nothing_closes_its_idle_connections() -> None:
    """They are closed before the interpreter takes its modules apart, after which it might report them."""
    left = """
        import atexit, sys
        atexit.register(lambda: print(sum(each["total"] for each in get_http_pool().get_stats()["pools"].values())))
        from app.pools.http_pool import HTTPConfig, get_http_pool
        config = HTTPConfig(sys.argv[1])
        get_http_pool().request(config, "GET", "/echo")
        with get_http_pool().session(config) as session:
            session.get("/echo")
    """
    with misbehaving_server() as server:
        ran = subprocess.run(
            [sys.executable, "-c", dedent(left), server.url], capture_output=True, text=True, timeout=60, cwd=ROOT,
            check=False,
        )  # fmt: skip
    assert (ran.stdout, ran.stderr) == ("0\n", "")


def test_abandoned_loops_are_forgotten(pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer) -> None:
    """A loop closed without a runner's care costs a connection until the next sweep, and never an error."""
    for _ in range(3):
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(pool.request_async(config, "GET", "/echo")).ok
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
    pool.sweep()
    gc.collect()
    eventually(lambda: server.connected == 0)


def test_a_thousand_calls_leave_no_threads_or_descriptors(pool: HTTPPool, config: HTTPConfig) -> None:
    """After many calls in threads and loops, failing ones included, no descriptor and no thread is left over."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def work(i: int) -> None:
        pool.request(config, "GET", "/echo")
        with pytest.raises(HTTPUnavailable):
            pool.request(replace(config, max_retries=0), "GET", "/reset")

    def round_of_calls() -> None:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(work, range(100)))
        asyncio.run(asyncio.wait_for(asyncio.to_thread(time.sleep, 0), 10))

    round_of_calls()
    before, threads = descriptors(), threading.active_count()
    for _ in range(4):
        round_of_calls()
    eventually(lambda: descriptors() <= before + 16)
    assert threading.active_count() <= threads
