"""What a pooled HTTP request costs, against the libraries used by hand: with and without TLS, near and far."""

from __future__ import annotations

import asyncio
import gc
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import local
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx
import requests
import urllib3
from harness import Figure, Runs, arguments, interleave, median, ratio, repeat, report
from http_server import BODY, Addresses, running
from multidict import CIMultiDict, CIMultiDictProxy

from app.pools.errors import PoolError
from app.pools.http_pool import HTTPConfig, HTTPPool

THREADS = (1, 8, 32)
IN_FLIGHT = (1, 100, 500)


def _kept(connections: int) -> httpx.Limits:
    # By default httpx ends what was idle for 5 s, which its threads do to each other's connections after a pause.
    return httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=600)


class Hot:
    """Everything that stays open between the calls of the contenders."""

    def __init__(self, url: str, where: Addresses, pool: HTTPPool) -> None:
        self.url = url
        self._trust = where.authorities
        self.pool = pool
        self.config = HTTPConfig(url, ca=where.authorities)
        self._thread = local()
        context = ssl.create_default_context(cafile=where.authorities)
        secure: dict[str, Any] = {"ssl_context": context} if url.startswith("https") else {}
        self._urllib3 = urllib3.connection_from_url(url, maxsize=max(THREADS), block=True, **secure)
        self._httpx = httpx.Client(verify=context, limits=_kept(max(THREADS)))

    def ours(self) -> object:
        return self.pool.request(self.config, "GET", "/item").json()

    def session(self) -> object:
        """requests, with a session of each thread's own."""
        if not hasattr(self._thread, "session"):
            self._thread.session = requests.Session()
        return self._thread.session.get(f"{self.url}/item", verify=self._trust, timeout=30).json()

    def per_call(self) -> object:
        return requests.get(f"{self.url}/item", verify=self._trust, timeout=30).json()

    def bare(self) -> object:
        """urllib3, without retries or deadline."""
        return self._urllib3.urlopen("GET", "/item", retries=False).json()

    def through_httpx(self) -> object:
        return self._httpx.get(f"{self.url}/item").json()

    def ours_anew(self) -> object:
        return self.pool.request(self.config, "GET", "/item", headers={"Connection": "close"})

    def session_anew(self) -> object:
        session = getattr(self._thread, "session", None) or requests.Session()
        return session.get(f"{self.url}/item", headers={"Connection": "close"}, verify=self._trust, timeout=30)


def in_threads(call: Callable[[], object], threads: ThreadPoolExecutor, many: int) -> Callable[[int], float]:
    """Return a contender that spreads its calls over ``many`` threads."""
    if many == 1:
        return repeat(call)

    def run(count: int) -> float:
        began = time.perf_counter()
        for each in [threads.submit(repeat(call), count // many) for _ in range(many)]:
            each.result()
        return time.perf_counter() - began

    return run


def in_tasks(call: Callable[[], Awaitable[object]], runner: asyncio.Runner, many: int) -> Callable[[int], float]:
    """Return a contender that keeps ``many`` calls in flight.

    Each run starts with the garbage collected: hundreds of calls at once outlive young collections, and a full one
    would otherwise fall to whoever runs first, for what the one before left behind.
    """

    async def work(count: int) -> None:
        for _ in range(count):
            await call()

    async def all_of_it(count: int) -> float:
        gc.collect()
        began = time.perf_counter()
        if many == 1:
            await work(count)
        else:
            await asyncio.gather(*(work(count // many) for _ in range(many)))
        return time.perf_counter() - began

    return lambda count: runner.run(all_of_it(count))


def synchronous(where: Addresses, pool: HTTPPool, scale: int) -> list[Figure]:
    figures = []
    for url in (where.http, where.https):
        scheme = url.partition(":")[0]
        hot = Hot(url, where, pool)
        with ThreadPoolExecutor(max(THREADS)) as threads:
            for many in THREADS:
                calls = {"ours": hot.ours, "session": hot.session, "urllib3": hot.bare, "httpx": hot.through_httpx}
                runs = interleave(
                    {name: in_threads(call, threads, many) for name, call in calls.items()},
                    rounds=7 if scale > 1 else 3,
                    count=max(many * 4, 200 * scale),
                )
                kind = f"{scheme}, {many} thread(s): "
                figures += [
                    Figure(
                        f"{kind}time vs a hot requests.Session", ratio(runs, "ours", "session"), 0.45, at_least=False
                    ),
                    Figure(f"{kind}time vs a bare urllib3 pool", ratio(runs, "ours", "urllib3"), 1.4, at_least=False),
                    Figure(f"{kind}time vs a hot httpx client", ratio(runs, "ours", "httpx")),
                ]
                if many == 1:
                    figures.append(Figure(f"{kind}one request", median(runs, "ours") * 1e6, unit="us"))
    return figures


def against_per_call(where: Addresses, pool: HTTPPool, scale: int) -> list[Figure]:
    near, far = Hot(where.https, where, pool), Hot(where.far, where, pool)
    rounds = 5 if scale > 1 else 3
    runs = interleave({"ours": repeat(near.ours), "per call": repeat(near.per_call)}, rounds=rounds, count=5 * scale)
    away = interleave({"ours": repeat(far.ours), "per call": repeat(far.per_call)}, rounds=rounds, count=2 * scale)
    anew = interleave(
        {"ours": repeat(near.ours_anew), "requests": repeat(near.session_anew)}, rounds=rounds, count=5 * scale
    )
    return [
        Figure("https, requests.get per call vs ours, loopback", ratio(runs, "per call", "ours"), 20),
        Figure("https, requests.get per call vs ours, 20 ms away", ratio(away, "per call", "ours"), 4),
        Figure("a new TLS connection, requests vs ours", ratio(anew, "requests", "ours"), 6),
    ]


def asynchronous(where: Addresses, pool: HTTPPool, scale: int) -> list[Figure]:
    figures = []
    context = ssl.create_default_context(cafile=where.authorities)
    with asyncio.Runner() as runner:
        for url in (where.http, where.https):
            scheme = url.partition(":")[0]
            config = HTTPConfig(url, ca=where.authorities, max_connections=max(IN_FLIGHT))
            session = runner.run(_session(context))
            # httpx looks at every request in flight for each new one: above 100 it would take up most of the run.
            client = httpx.AsyncClient(verify=context, timeout=30, limits=_kept(100))

            async def ours(config: HTTPConfig = config) -> object:
                return (await pool.request_async(config, "GET", "/item")).json()

            async def hot(session: aiohttp.ClientSession = session, url: str = url) -> object:
                async with session.get(f"{url}/item") as answer:
                    return await answer.json()

            async def anew(url: str = url) -> object:
                async with await _session(context) as fresh, fresh.get(f"{url}/item") as answer:
                    return await answer.json()

            async def through_httpx(client: httpx.AsyncClient = client, url: str = url) -> object:
                return (await client.get(f"{url}/item")).json()

            for many in IN_FLIGHT:
                calls: dict[str, Callable[[], Awaitable[object]]] = {"ours": ours, "hot": hot}
                if many == 1:
                    calls["new session"] = anew
                runs = interleave(
                    {name: in_tasks(call, runner, many) for name, call in calls.items()},
                    rounds=7 if scale > 1 else 3,
                    count=max(many * 4, 200 * scale),
                )
                kind = f"{scheme}, {many} in flight: "
                figures.append(
                    Figure(f"{kind}time vs a hot aiohttp session", ratio(runs, "ours", "hot"), 1.2, at_least=False)
                )
                if many <= 100:
                    figures.append(
                        against_httpx(kind, in_tasks(ours, runner, many), in_tasks(through_httpx, runner, many))
                    )
                if many == 1:
                    figures.append(
                        Figure(f"{kind}a new aiohttp session vs a hot one", ratio(runs, "new session", "hot"))
                    )
                if many == 1 and scheme == "http":
                    figures.append(wrapper_alone(pool, config, runner, runs, scale))
            runner.run(session.close())
            runner.run(client.aclose())
    return figures


def against_httpx(kind: str, ours: Callable[[int], float], theirs: Callable[[int], float]) -> Figure:
    """Measure httpx in a few short rounds of its own: with many requests in flight it would take up most of the run."""
    runs = interleave({"ours": ours, "httpx": theirs}, rounds=3, count=200)
    return Figure(f"{kind}time vs a hot httpx client", ratio(runs, "ours", "httpx"))


async def _session(context: ssl.SSLContext) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, limit=max(IN_FLIGHT)))


class _Instant:
    """Stands for an aiohttp session whose answer is there at once, so that what remains is our own work."""

    closed = False

    def __init__(self) -> None:
        headers = CIMultiDictProxy(CIMultiDict({"Content-Type": "application/json", "Content-Length": str(len(BODY))}))

        async def read() -> bytes:
            return BODY

        self._answer = SimpleNamespace(
            status=200, headers=headers, content_length=len(BODY), connection=None, read=read, close=lambda: None
        )

    async def request(self, *args: object, **options: object) -> SimpleNamespace:
        return self._answer


def wrapper_alone(pool: HTTPPool, config: HTTPConfig, runner: asyncio.Runner, runs: Runs, scale: int) -> Figure:
    """Measure the pool's own part of an asynchronous request, as a share of a request on a hot session."""
    tasks = pool._accounts[config].transport.tasks
    held = tasks._sessions[runner.get_loop()]
    real, instant = held.session, _Instant()

    async def ours() -> object:
        return await pool.request_async(config, "GET", "/item")

    async def nothing() -> object:
        answer = await instant.request()
        return await answer.read()

    held.session = instant  # type: ignore[assignment]
    try:
        contenders = {"ours": in_tasks(ours, runner, 1), "nothing": in_tasks(nothing, runner, 1)}
        alone = interleave(contenders, rounds=7, count=1000 * scale)
    finally:
        held.session = real
    share = 100 * (median(alone, "ours") - median(alone, "nothing")) / median(runs, "hot")
    return Figure("async wrapper alone, of one hot loopback request", share, 8, at_least=False, unit="%")


def while_down(where: Addresses) -> Figure:
    """Make 1,000 calls to a server that is down, without the circuit that would spare most of them."""
    config = HTTPConfig(where.down, circuit_threshold=0, retry_delay=0.001)
    with HTTPPool() as pool:

        def call(_: int) -> None:
            with suppress(PoolError):
                pool.request(config, "GET", "/item")

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(call, range(1000)))
        attempts = pool.get_stats()["pools"][where.down]["attempts"]
    return Figure("attempts per call while the server is down", attempts / 1000, 1.1, at_least=False, unit="")


def main() -> int:
    scale = 1 if arguments(__doc__ or "").quick else 5
    with running() as where, HTTPPool() as pool:
        figures = synchronous(where, pool, scale)
        reused = pool.get_stats()["pools"][where.http]["reuse_ratio"]
        figures += against_per_call(where, pool, scale)
        figures += asynchronous(where, pool, scale)
        figures.append(Figure("reuse ratio in steady state", reused, 0.99, unit=""))
        figures.append(while_down(where))
    report("HTTP", figures, ("aiohttp", "requests", "urllib3", "httpx"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
