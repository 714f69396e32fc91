"""Each rewrite, as a pair of real programs: the same results, fewer connections at the server, none left open."""

from __future__ import annotations

import http.server
import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from app.migration import Config, scan
from tests.support.waiting import eventually

rewriting = pytest.importorskip("app.migration.rewriting", reason="needs the extra `migrate`")

ROOT = Path(__file__).parents[2]
CALLS = 5

DRIVER = """
import asyncio, inspect, json, os, sys

opened = 0
def watch(event, arguments):
    global opened
    opened += event == "sqlite3.connect"
sys.addaudithook(watch)

import agent

async def call(function, *arguments):
    result = function(*arguments)
    return await result if inspect.isawaitable(result) else result

async def main(subject, results):
    for number in range({calls}):
        results.append(await call(subject.work, number))
    try:
        await call(subject.fail)
    except Exception as error:
        results.append("failed")
    return results

def run(target):
    subject = agent.Subject(target)
    results = []
    asyncio.run(main(subject, results)) if inspect.iscoroutinefunction(subject.work) else drive(subject, results)
    getattr(subject, "stop", lambda: None)()
    return results

def drive(subject, results):
    for number in range({calls}):
        results.append(subject.work(number))
    try:
        subject.fail()
    except Exception as error:
        results.append("failed")

target = sys.argv[1]
in_use = 0
if sys.argv[2] == "pooled":
    from app.containers import AgentContainer, Lifecycle
    container = AgentContainer()
    with Lifecycle(container, modules=[agent]):
        results = run(target)
        pools = (container.zmq_pool(), container.sql_pool(), container.http_pool())
        in_use = sum(pool.get_stats()["metrics"]["active_connections"] for pool in pools)
else:
    results = run(target)
descriptors = [f"/proc/self/fd/{{name}}" for name in os.listdir("/proc/self/fd")]
left = sum(1 for each in descriptors if os.path.exists(each) and os.readlink(each) == target)
print(json.dumps({{"results": results, "opened": opened, "in_use": in_use, "left": left}}), flush=True)
sys.stdin.readline()
"""


class Servers:
    """What the programs talk to, counting connections."""

    opened = 0
    open_now = 0


@contextmanager
def zmq_server(kind: int) -> Iterator[tuple[str, Servers, list[bytes]]]:
    """Serve a REP that echoes, or collect what a SUB gets; counts TCP connections by libzmq's monitor."""
    counts, received = Servers(), []
    context = zmq.Context()
    socket = context.socket(kind)
    monitor = socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    if kind == zmq.SUB:
        socket.subscribe(b"")
    stopping = threading.Event()

    def serve() -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(monitor, zmq.POLLIN)
        while not stopping.is_set():
            for ready, _ in poller.poll(50):
                if ready is monitor:
                    event = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
                    counts.opened += event == zmq.EVENT_ACCEPTED
                    counts.open_now += 1 if event == zmq.EVENT_ACCEPTED else -1
                elif kind == zmq.REP:
                    socket.send(b'{"echo": %s}' % socket.recv())
                else:
                    received.append(b"|".join(socket.recv_multipart()))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{port}", counts, received
    finally:
        stopping.set()
        thread.join()
        socket.disable_monitor()
        monitor.close(0)
        socket.close(0)
        context.term()


@contextmanager
def http_server() -> Iterator[tuple[str, Servers]]:
    """Serve JSON, 404 below ``/missing``; counts TCP connections."""
    counts = Servers()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            counts.opened += 1
            counts.open_now += 1
            super().setup()

        def finish(self) -> None:
            super().finish()
            counts.open_now -= 1

        def do_GET(self) -> None:
            missing = self.path.startswith("/missing")
            body = json.dumps({"path": self.path}).encode()
            self.send_response(404 if missing else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", counts
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Program:
    """A program that ran its calls and failed once, and still lives."""

    def __init__(self, folder: Path, target: str, mode: str) -> None:
        (folder / "driver.py").write_text(DRIVER.format(calls=CALLS))
        self._process = subprocess.Popen(
            [sys.executable, "driver.py", target, mode],
            cwd=folder,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(self._process.communicate(timeout=30)[1])
        self.outcome: dict[str, Any] = json.loads(line)

    def end(self) -> None:
        """Let it exit."""
        self._process.communicate("\n", timeout=30)
        assert self._process.returncode == 0


def rewrite(folder: Path, source: str) -> Path:
    """Write ``source`` as ``agent.py`` in two folders, rewritten in the second, and return that one."""
    before, after = folder / "before", folder / "after"
    for each in (before, after):
        each.mkdir()
        (each / "agent.py").write_text(source)
    (change,) = rewriting.plan(scan([after], Config(cache=False)))
    assert not [refusal for refusal in change.refusals if refusal.code not in ("PM104", "PM105")], change.refusals
    change.write()
    assert not [site for site in scan([after], Config(cache=False)).findings if site.hot]
    return after


def outcome(folder: Path, target: str, mode: str) -> dict[str, Any]:
    program = Program(folder, target, mode)
    program.end()
    return program.outcome


REQUEST = """
import zmq


class Subject:
    def __init__(self, target):
        self.target = target

    def work(self, number):
        context = zmq.Context()
        socket = context.socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 10000)
        socket.connect(self.target)
        socket.send_json({"number": number})
        answer = socket.recv_json()
        socket.close()
        context.term()
        return answer

    def fail(self):
        context = zmq.Context()
        socket = context.socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 10000)
        socket.connect(self.target)
        try:
            socket.send_json("ask")
            return {}[socket.recv_string()]
        finally:
            socket.close()
            context.term()
"""


def test_request_socket(tmp_path: Path) -> None:
    """A REQ socket for each call becomes a leased one: the same answers over fewer connections."""
    after = rewrite(tmp_path, REQUEST)
    with zmq_server(zmq.REP) as (endpoint, counts_before, _):
        old = outcome(tmp_path / "before", endpoint, "plain")
        eventually(lambda: counts_before.opened == CALLS + 1)
    with zmq_server(zmq.REP) as (endpoint, counts, _):
        program = Program(after, endpoint, "pooled")
        eventually(lambda: counts.open_now == 0)
        program.end()
    assert program.outcome["results"] == old["results"]
    assert old["results"][-1] == "failed"
    assert counts.opened <= 2  # one, and the one by which the pool watches the endpoint
    assert program.outcome["in_use"] == 0


OWN_CONTEXT = """
import zmq


class Subject:
    def __init__(self, target):
        self.context = zmq.Context()
        self.other = zmq.Context()
        self.socket = self.context.socket(zmq.REQ)
        self.socket.linger = 0
        self.socket.connect(target)
        self.spare = self.other.socket(zmq.REQ)
        self.spare.connect(target)

    def work(self, number):
        self.socket.send_json(number)
        return self.socket.recv_json()

    def fail(self):
        raise ValueError("in the middle")

    def stop(self):
        self.socket.close()
        self.context.term()
        self.other.destroy(linger=0)
"""


def test_own_context(tmp_path: Path) -> None:
    """Two contexts of an object become the pool's one: the same answers, and its sockets are closed as before."""
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "agent.py").write_text(OWN_CONTEXT)
    (change,) = rewriting.plan(scan([tmp_path / "after"], Config(cache=False)), ["PM101"])
    change.write()
    text = (tmp_path / "after" / "agent.py").read_text()
    assert "zmq.Context(" not in text
    assert "term()" not in text
    assert "self.spare.close()" in text
    with zmq_server(zmq.REP) as (endpoint, counts, _):
        old = outcome(tmp_path / "before", endpoint, "plain")
        eventually(lambda: counts.open_now == 0)
        program = Program(tmp_path / "after", endpoint, "pooled")
        eventually(lambda: counts.open_now == 0)
        program.end()
    assert program.outcome["results"] == old["results"]


PUBLISH = """
import json
import time

import zmq


class Subject:
    def __init__(self, target):
        self.target = target

    def work(self, number):
        context = zmq.Context()
        bus = context.socket(zmq.PUB)
        bus.connect(self.target)
        time.sleep(0.2)
        bus.send_string(json.dumps({"error": number}))
        bus.send_multipart([b"topic", str(number).encode()])
        bus.send_json({"also": number})
        bus.close()
        context.term()
        return number

    def fail(self):
        context = zmq.Context()
        bus = context.socket(zmq.PUB)
        bus.connect(self.target)
        try:
            raise ValueError("before the message")
        finally:
            bus.close()
            context.term()
"""


def test_error_bus(tmp_path: Path) -> None:
    """A PUB for each message becomes one publisher: every message arrives, over one connection."""
    after = rewrite(tmp_path, PUBLISH)
    expected = {
        message
        for number in range(CALLS)
        for message in (b'{"error": %d}' % number, b"topic|%d" % number, b'{"also": %d}' % number)
    }
    with zmq_server(zmq.SUB) as (endpoint, counts_before, _):
        old = outcome(tmp_path / "before", endpoint, "plain")
        eventually(lambda: counts_before.opened >= CALLS)
    with zmq_server(zmq.SUB) as (endpoint, counts, received):
        program = Program(after, endpoint, "pooled")
        eventually(lambda: set(received) == expected)
        eventually(lambda: counts.open_now == 0)
        program.end()
    assert program.outcome["results"] == old["results"]
    assert counts.opened <= 2  # one, and the one by which the pool watches the endpoint


KEPT_PUBLISHER = """
import time

import zmq


class Subject:
    def __init__(self, target):
        self.context = zmq.Context()
        self.bus = self.context.socket(zmq.PUB)
        self.bus.connect(target)
        time.sleep(0.3)

    def work(self, number):
        self.bus.send_json({"error": number})
        return number

    def fail(self):
        self.bus.send_multipart([b"topic", b"last"])
        raise ValueError("after the message")

    def stop(self):
        self.bus.close()
        self.context.term()
"""


def test_kept_error_bus(tmp_path: Path) -> None:
    """A PUB socket that an object keeps becomes a publisher: every message arrives, and it is closed at the stop."""
    after = rewrite(tmp_path, KEPT_PUBLISHER)
    expected = {*(b'{"error": %d}' % number for number in range(CALLS)), b"topic|last"}
    results = []
    for folder, mode in ((tmp_path / "before", "plain"), (after, "pooled")):
        with zmq_server(zmq.SUB) as (endpoint, counts, received):
            program = Program(folder, endpoint, mode)
            eventually(lambda received=received: set(received) == expected)
            eventually(lambda counts=counts: counts.open_now == 0)
            program.end()
            results.append(program.outcome["results"])
    assert results[0] == results[1]


SQLITE = """
import sqlite3
from contextlib import closing


class Subject:
    def __init__(self, target):
        self.target = target

    def work(self, number):
        connection = sqlite3.connect(self.target)
        cursor = connection.cursor()
        cursor.execute("insert into t (x) values (?)", (number,))
        connection.commit()
        connection.close()
        self.twice(number)
        return [self.read(number), self.count(), self.break_off()]

    def read(self, number):
        connection = sqlite3.connect(self.target)
        try:
            rows = connection.execute("select x, 'é' from t where x <= ? order by x", (number,)).fetchall()
            self.abandon()
            return [list(row) for row in rows] + [isinstance(rows[0], tuple)]
        finally:
            connection.close()

    def twice(self, number):
        with sqlite3.connect(self.target) as connection:
            connection.execute("insert into t (x) values (?)", (1000 + number,))
            connection.execute("insert into t (x) values (?)", (2000 + number,))

    def count(self):
        with closing(sqlite3.connect(self.target)) as connection:
            return connection.execute("select count(*) from t").fetchone()[0]

    def break_off(self):
        try:
            with sqlite3.connect(self.target) as connection:
                connection.execute("insert into t (x) values (88)")
                raise ValueError("in the middle of a transaction")
        except ValueError:
            return "broken off"

    def abandon(self):
        connection = sqlite3.connect(self.target)
        connection.execute("insert into t (x) values (99)")
        connection.close()

    def fail(self):
        connection = sqlite3.connect(self.target)
        connection.execute("insert into t (x) values (77)")
        connection.execute("select * from missing")
        connection.commit()
        connection.close()
"""


def test_sqlite_calls(tmp_path: Path) -> None:
    """A SQLite connection for each call becomes a leased one: the same rows, nothing uncommitted kept."""
    after = rewrite(tmp_path, SQLITE)
    outcomes, contents = [], []
    for folder, mode in ((tmp_path / "before", "plain"), (after, "pooled")):
        database = folder / "data.db"
        setup = sqlite3.connect(database)
        setup.execute("create table t (x)")
        setup.commit()
        setup.close()
        program = Program(folder, str(database), mode)
        program.end()
        outcomes.append(program.outcome)
        check = sqlite3.connect(database)
        contents.append(check.execute("select x from t order by x").fetchall())
        check.close()
    old, new = outcomes
    assert new["results"] == old["results"]
    expected = [(base + number,) for base in (0, 1000, 2000) for number in range(CALLS)]
    assert contents[1] == contents[0] == expected
    assert old["opened"] == 6 * CALLS + 1
    assert new["opened"] < old["opened"] / 2
    assert new["in_use"] == new["left"] == 0


ONE_SHOT = """
import requests


class Subject:
    def __init__(self, target):
        self.target = target

    def work(self, number):
        response = requests.get(f"{self.target}/item/{number}", params={"q": "a b"}, timeout=10)
        response.raise_for_status()
        page = self.page(f"{self.target}/page?a=%20b&n={number}")
        return [response.status_code, response.json(), response.text, page]

    def page(self, url):
        return requests.get(url, headers={"X-A": "b"}, timeout=10).json()

    def fail(self):
        try:
            requests.get("http://127.0.0.1:9/refused", timeout=10).json()
        except requests.ConnectionError:
            answer = requests.get(self.target + "/missing", timeout=10)
            answer.raise_for_status()
"""


def test_one_shot_requests(tmp_path: Path) -> None:
    """requests.get becomes a pooled request: the same responses and errors over one kept connection."""
    after = rewrite(tmp_path, ONE_SHOT)
    _check_http(tmp_path / "before", after)


SESSION = """
import aiohttp


class Subject:
    def __init__(self, target):
        self.target = target

    async def work(self, number):
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{self.target}/item/{number}", params={"q": "a"}) as response:
                return [response.status, await response.json(), await response.text()]

    async def fail(self):
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            async with session.get(f"{self.target}/missing") as response:
                response.raise_for_status()
"""


def test_client_sessions(tmp_path: Path) -> None:
    """An aiohttp session for each call becomes pooled requests: the same responses over one kept connection."""
    after = rewrite(tmp_path, SESSION)
    _check_http(tmp_path / "before", after)


def _check_http(before: Path, after: Path) -> None:
    with http_server() as (url, counts):
        old = outcome(before, url, "plain")
        eventually(lambda: counts.open_now == 0)
        opened_before, counts.opened = counts.opened, 0
        program = Program(after, url, "pooled")
        eventually(lambda: counts.open_now == 0)
        program.end()
    assert program.outcome["results"] == old["results"]
    assert old["results"][-1] == "failed"
    assert opened_before > CALLS
    assert counts.opened == 1
    assert program.outcome["in_use"] == 0
