"""A process of agents ends within its budget, whatever its agents do, and loses no request on the way."""

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.pools.errors import RequestFailed
from app.pools.zmq_pool import Peer, SocketConfig, SocketType, ZMQPool
from tests.support.agent_process import Process
from tests.support.waiting import eventually, eventually_async

HEAD = """
    import asyncio, sys, threading, time
    from pathlib import Path
    from app.agents import Agent, main
"""
SOCKETS = """
    [sockets.{name}]
    type = "REP"
    endpoint = "ipc://{folder}/{name}"
    bind = true
"""

HANGING = {
    "a plain on_start": """
        def on_start(self):
            Path("entered").touch()
            threading.Event().wait()
        async def run(self): ...
    """,
    "a thread of asyncio's": """
        async def run(self):
            await asyncio.to_thread(self.work)
        def work(self):
            Path("entered").touch()
            threading.Event().wait()
    """,
    "on_stop": """
        async def run(self):
            Path("entered").touch()
            await asyncio.Event().wait()
        async def on_stop(self):
            await asyncio.Event().wait()
    """,
    "a swallowed cancellation": """
        async def run(self):
            Path("entered").touch()
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    continue
    """,
    "the event loop": """
        async def run(self):
            Path("entered").touch()
            time.sleep(600)
    """,
}


def hanging(body: str) -> str:
    return f"{HEAD}\n    class Hanging(Agent):{body}\n    main(Hanging, drain_timeout=0.5, stop_timeout=0.5)\n"


@pytest.mark.parametrize("what", HANGING)
def test_a_signal_ends_the_process_whatever_hangs(what: str, start: Callable[..., Process]) -> None:
    """One SIGTERM is enough: the process exits with 3 within its budget and a few seconds, and says why."""
    process = start(hanging(HANGING[what]), "")
    eventually(lambda: process.saw("entered"), 30)
    process.child.terminate()
    began = time.monotonic()
    code, errors = process.end()

    assert code == 3, errors
    assert "did not end" in errors
    assert time.monotonic() - began < 30


def test_a_plain_handler_that_hangs_does_not_keep_the_process(start: Callable[..., Process], folder: Path) -> None:
    """Its thread is left behind, and the process exits with 3 at the end of the drain."""
    source = f"""{HEAD}
    class Hanging(Agent):
        endpoint = "hanging"
        async def on_start(self):
            Path("started").touch()
        def on_request(self, message):
            Path("entered").touch()
            threading.Event().wait()
    main(Hanging, drain_timeout=0.5, stop_timeout=0.5)
    """
    process = start(source, SOCKETS.format(name="hanging", folder=folder))
    eventually(lambda: process.saw("started"), 30)
    with ZMQPool() as pool:
        with pool.socket(SocketConfig(SocketType.REQ, f"ipc://{folder}/hanging")) as socket:
            socket.send(b"{}")
            eventually(lambda: process.saw("entered"), 30)
            process.child.terminate()
            code, errors = process.end()

    assert code == 3, errors
    assert "hanging: 1 in flight did not end within 0.5 s" in errors


def test_a_second_signal_ends_a_process_whose_event_loop_is_blocked(start: Callable[..., Process]) -> None:
    """It needs nothing of the loop."""
    body = HANGING["the event loop"]
    source = hanging(body).replace("stop_timeout=0.5", "stop_timeout=600")
    process = start(source, "")
    eventually(lambda: process.saw("entered"), 30)
    for _ in range(300):  # two signals that come together are one
        process.child.terminate()
        try:
            process.child.wait(0.1)
            break
        except subprocess.TimeoutExpired:
            continue
    code, errors = process.end()

    assert code == 128 + signal.SIGTERM
    assert "SIGTERM again: the process ends now, without cleaning up" in errors


def test_a_signal_during_a_slow_start_rolls_it_back(start: Callable[..., Process]) -> None:
    """What had started is stopped, in reverse, the one that was starting too, and the code is 0."""
    source = f"""{HEAD}
    class First(Agent):
        async def run(self):
            await asyncio.Event().wait()
        async def on_stop(self):
            Path("first stopped").touch()

    class Slow(Agent):
        async def on_start(self):
            Path("entered").touch()
            await asyncio.sleep(600)
        async def run(self):
            Path("ran").touch()

    main(First, Slow)
    """
    process = start(source, "")
    eventually(lambda: process.saw("entered"), 30)
    process.child.terminate()
    began = time.monotonic()
    code, errors = process.end()

    assert code == 0, errors
    assert time.monotonic() - began < 9  # less than any of the limits
    assert (process.folder / "first stopped").exists()
    assert not (process.folder / "ran").exists()


async def test_two_agents_under_load_answer_or_refuse_every_request(
    start: Callable[..., Process], folder: Path
) -> None:
    """At SIGTERM with hundreds of requests on their way through two agents, none is lost, and the code is 0."""
    source = f"""{HEAD}
    from app.containers import Provide, inject

    class Back(Agent):
        endpoint = "back"
        async def on_request(self, message):
            await asyncio.sleep(0.02)
            return message

    class Front(Agent):
        endpoint = "front"
        async def on_start(self):
            Path("started").touch()
        @inject
        async def on_request(self, message, back=Provide["peers.back"]):
            return await back.ask_async(message)

    main(Back, Front, drain_timeout=30)
    """
    toml = SOCKETS.format(name="back", folder=folder) + SOCKETS.format(name="front", folder=folder)
    process = start(source, f'{toml}\n    [peers.back]\n    endpoint = "ipc://{folder}/back"\n')
    await eventually_async(lambda: process.saw("started"), 30)
    async with ZMQPool() as pool:
        peers = [Peer(pool, SocketConfig(SocketType.REQ, f"ipc://{folder}/{name}")) for name in ("front", "back")]
        asking = [
            asyncio.create_task(peers[number % 2].ask_async({"number": number}, timeout=40)) for number in range(400)
        ]
        await eventually_async(lambda: sum(task.done() for task in asking) >= 20, 30)
        process.child.terminate()
        answers: list[Any] = await asyncio.gather(*asking, return_exceptions=True)
    code, errors = await asyncio.to_thread(process.end)

    refused = [answer for answer in answers if isinstance(answer, RequestFailed) and "AgentStopping" in str(answer)]
    answered = [answer for answer in answers if isinstance(answer, dict)]
    assert len(refused) + len(answered) == 400, {str(answer) for answer in answers}
    assert len(answered) >= 20
    assert code == 0, errors


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ("main(42)", "error: 42 is not an agent"),
        ("main(type('Lost', (Agent,), dict(endpoint='lost', on_request=print)))", "error: Lost.endpoint is 'lost'"),
        ("main(type('A', (Agent,), {}), modules=['json'])", "error: modules has 'json'"),
        ("main(type('A', (Agent,), dict(run=print)))", "error: A.run must be `async def`"),
    ],
)
def test_a_wrong_definition_exits_with_1_and_one_line(call: str, complaint: str, start: Callable[..., Process]) -> None:
    """There is no traceback to read past."""
    process = start(f"{HEAD}\n    {call}\n", "")
    code, errors = process.end()

    assert code == 1
    assert complaint in errors
    assert "Traceback" not in errors
