"""``main`` as a process of its own: signals, exit codes, and what it prints."""

import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.agent_process import Process
from tests.support.waiting import eventually

AGENT = """
    import asyncio, sys
    from pathlib import Path
    from app.agents import Agent, main
    from app.containers import Provide, inject

    class Slow(Agent):
        endpoint = "slow"

        async def on_start(self):
            Path("started").touch()

        @inject
        async def on_request(self, message: dict, db=Provide["databases.main.handle"]) -> dict:
            Path("entered").touch()
            while not Path("release").exists():
                await asyncio.sleep(0.01)
            await db.execute_query_async("CREATE TABLE IF NOT EXISTS done (number INTEGER)")
            await db.execute_query_async("INSERT INTO done VALUES (1)")
            return {"done": True}

        async def on_stop(self):
            Path("stopped").touch()

    if __name__ == "__main__":
        main(Slow, drain_timeout=float(sys.argv[1]))
"""


def toml(folder: Path) -> str:
    return f"""
        [sockets.slow]
        type = "REP"
        endpoint = "ipc://{folder}/slow"
        bind = true

        [databases.main]
        url = "sqlite:///main.db"
    """


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_in_flight_and_exits_with_0(
    number: signal.Signals, start: Callable[..., Process], folder: Path
) -> None:
    """The request that was being handled is answered, its row is written, the hooks run, the code is 0."""
    process = start(AGENT, toml(folder), "30")
    with ZMQPool() as pool:
        eventually(lambda: process.saw("started"), 30)
        config = SocketConfig(SocketType.REQ, f"ipc://{folder}/slow")
        with pool.socket(config) as socket:
            socket.send(b"{}")
            eventually(lambda: process.saw("entered"), 30)
            process.child.send_signal(number)
            (process.folder / "release").touch()
            socket.rcvtimeo = 30_000
            answer: Any = socket.recv()
    code, errors = process.end()

    assert answer == b'{"done":true}'
    assert code == 0, errors
    assert (process.folder / "stopped").exists()
    assert "Traceback" not in errors


def test_a_drain_that_takes_too_long_exits_with_3(start: Callable[..., Process], folder: Path) -> None:
    """Work that does not end is cut off after its limit, and a distinct exit code says so."""
    process = start(AGENT, toml(folder), "0.2")
    with ZMQPool() as pool:
        eventually(lambda: process.saw("started"), 30)
        with pool.socket(SocketConfig(SocketType.REQ, f"ipc://{folder}/slow")) as socket:
            socket.send(b"{}")
            eventually(lambda: process.saw("entered"), 30)
            process.child.terminate()
            code, errors = process.end()

    assert code == 3
    assert "slow: 1 in flight did not end within 0.2 s" in errors


def test_a_second_signal_ends_the_process_at_once(start: Callable[..., Process], folder: Path) -> None:
    """Whoever does not want to wait for the drain signals again and gets 128 plus the signal's number."""
    process = start(AGENT, toml(folder), "300")
    with ZMQPool() as pool:
        eventually(lambda: process.saw("started"), 30)
        with pool.socket(SocketConfig(SocketType.REQ, f"ipc://{folder}/slow")) as socket:
            socket.send(b"{}")
            eventually(lambda: process.saw("entered"), 30)
            for _ in range(200):
                if process.child.poll() is not None:
                    break
                process.child.terminate()
                try:
                    process.child.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
            code, errors = process.end()

    assert code == 128 + signal.SIGTERM
    assert "without cleaning up" in errors


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        ("[socket.slow]\ntype='REP'\n", r"[socket] is not a table of poolwire; did you mean [sockets]?"),
        ("[databases.man]\nurl='sqlite:///x.db'\n", "the container has no 'databases.main.handle'"),
        (
            "[databases.main]\nurl='sqlite:///x.db'\n[sockets.slow]\ntype='REPLY'\nendpoint='inproc://x'\n",
            "[sockets.slow] in poolwire.toml: 'REPLY' is not one of REQ, REP",
        ),
        ("[zmq_pool]\nmax_connections = 0\n[databases.main]\nurl='sqlite:///x.db'\n", "ZMQ_POOL_MAX_CONNECTIONS=0"),
    ],
)
def test_a_wrong_configuration_exits_with_1_and_says_what_to_do(
    toml: str, complaint: str, start: Callable[..., Process]
) -> None:
    """The message is one line that names the table and the value, without a traceback."""
    process = start(AGENT, toml, "1")
    code, errors = process.end()

    assert code == 1
    assert complaint in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("endpoint", "complaint"),
    [
        ("tcp://127.0.0.1:{port}", "is bound already, by another configuration or another process"),
        ("tcp://nowhere.invalid:{port}", "nowhere.invalid"),
    ],
)
def test_an_endpoint_that_cannot_be_bound_is_one_line(
    endpoint: str, complaint: str, start: Callable[..., Process], free_port: int
) -> None:
    """A port in use, or a name that does not resolve, is told once, with the agent's name and without a traceback."""
    configuration = f"""
        [sockets.slow]
        type = "REP"
        endpoint = "{endpoint.format(port=free_port)}"
        bind = true
        allow_plaintext = true

        [databases.main]
        url = "sqlite:///main.db"
    """
    with socket.create_server(("127.0.0.1", free_port)):
        code, errors = start(AGENT, configuration, "1").end()

    assert code == 1
    (said,) = [line for line in errors.splitlines() if "INFO" not in line]
    assert said.startswith("error: ")
    assert complaint in said
    assert said.endswith("(raised by slow)")
