"""How a run stops: cancelled from outside, with work that resists, and with requests still in the socket."""

import asyncio
import logging
import uuid
from typing import Any

import pytest

from app.agents import Agent, AgentDefinitionError, AgentError, DrainExceeded, State, run
from app.containers import ContainerError
from app.pools.errors import RequestFailed
from app.pools.zmq_pool import SocketConfig, SocketType
from tests.support.agents import Gated, ask, container, rep, running
from tests.support.waiting import eventually_async


class Starting(Agent):
    """Takes its time for the start, and for the end of a start that is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.hold = asyncio.Event()

    async def on_start(self) -> None:
        self.log.append("start")
        try:
            await asyncio.Event().wait()
        finally:
            await self.hold.wait()
            self.log.append("start ended")

    async def run(self) -> None:
        self.log.append("run")

    async def on_stop(self) -> None:
        self.log.append("stop")


async def test_a_run_that_is_cancelled_during_the_start_stops_what_has_ended_starting() -> None:
    """``on_stop`` waits for the end of ``on_start``, and ``run()`` for both, before it raises the cancellation."""
    agent = Starting()
    task = asyncio.create_task(run([agent], container(), handle_signals=False))
    await eventually_async(lambda: agent.log)
    task.cancel()
    asyncio.get_running_loop().call_later(0.1, agent.hold.set)
    with pytest.raises(asyncio.CancelledError):
        await task

    assert agent.log == ["start", "start ended", "stop"]


async def test_a_second_cancellation_does_not_skip_on_stop() -> None:
    """Whoever cancels twice still has the requests in flight answered and ``on_stop`` called."""
    log: list[str] = []

    class Noting(Gated):
        async def on_stop(self) -> None:
            log.append("stop")

    wired, gated = container(echo=rep()), Noting()
    async with running([gated], wired) as (servers, _, task):
        asking = asyncio.create_task(ask(wired, "echo", {"number": 1}))
        await eventually_async(lambda: gated.entered == 1)
        task.cancel()
        await eventually_async(lambda: State.DRAINING is servers[0].state)
        task.cancel()
        await asyncio.sleep(0)
        gated.gate.set()
        assert await asking == {"number": 1}
        with pytest.raises(asyncio.CancelledError):
            await task

    assert log == ["stop"]


async def test_an_idle_agent_exceeds_no_drain() -> None:
    """With no time at all for the drain, agents that do nothing stop cleanly."""

    class Working(Agent):
        async def run(self) -> None:
            await asyncio.Event().wait()

    async with running([Gated(), Working()], container(echo=rep()), drain_timeout=0) as (_, stop, task):
        stop.set()
        summary = await task

    assert summary.cancelled == {}


@pytest.mark.parametrize("attempt", range(3))
async def test_every_request_is_answered_or_told_that_it_was_not_executed(attempt: int) -> None:
    """Of five hundred requests at once, those in the socket's queue when the stop begins are refused, not dropped."""
    endpoint = f"ipc://@poolwire-{id(object())}-{attempt}"
    wired, gated = container(echo=SocketConfig(SocketType.REP, endpoint, bind=True)), Gated()
    asker = container(echo=SocketConfig(SocketType.REP, endpoint))
    try:
        async with running([gated], wired) as (_, stop, task):
            asking = [asyncio.create_task(ask(asker, "echo", {"number": number})) for number in range(500)]
            await eventually_async(lambda: gated.entered == gated.concurrency)
            stop.set()
            gated.gate.set()
            answers = await asyncio.gather(*asking, return_exceptions=True)
            summary = await task
    finally:
        await asker.zmq_pool().stop_async()

    refused = [answer for answer in answers if isinstance(answer, RequestFailed) and "AgentStopping" in str(answer)]
    answered = [answer for answer in answers if isinstance(answer, dict)]
    assert len(refused) + len(answered) == 500, {str(answer) for answer in answers}
    assert len(answered) == summary.handled["gated"]


async def test_on_stop_has_a_limit() -> None:
    """An ``on_stop`` that hangs is cancelled and named; the one of the other agent is called all the same."""
    log: list[str] = []

    class Hanging(Gated):
        async def on_stop(self) -> None:
            await asyncio.Event().wait()

    class Noting(Agent):
        async def run(self) -> None:
            await asyncio.Event().wait()

        async def on_stop(self) -> None:
            log.append("stop")

    async with running([Noting, Hanging], container(echo=rep()), drain_timeout=0.1) as (_, stop, task):
        stop.set()
        with pytest.raises(DrainExceeded, match=r"hanging: on_stop did not end within 1\.0 s"):
            await task

    assert log == ["stop"]


async def test_work_that_swallows_its_cancellation_is_left_behind() -> None:
    """A ``run()`` that goes on after it was cancelled does not keep the others from stopping."""
    release = asyncio.Event()

    class Stubborn(Agent):
        async def run(self) -> None:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

    async with running([Stubborn], container(), drain_timeout=0.1) as (_, stop, task):
        stop.set()
        with pytest.raises(DrainExceeded, match=r"stubborn: run\(\) did not end within 0\.1 s"):
            await task
    release.set()
    await eventually_async(lambda: len(asyncio.all_tasks()) == 1)


async def test_a_start_that_takes_too_long_is_named() -> None:
    """The error says whose ``on_start`` it was and how long it had."""
    agent = Starting()
    agent.hold.set()

    with pytest.raises(ContainerError, match=r"on_start of starting did not start within 0\.1 s"):
        await run([agent], container(), handle_signals=False, start_timeout=0.1)


@pytest.mark.parametrize("hook", ["on_request", "on_start"])
async def test_a_cancellation_that_a_hook_raises_itself_is_an_error(hook: str) -> None:
    """``CancelledError`` from something that a hook awaited is answered, or ends the start, like any other error."""

    async def cancelled(self: Agent, *message: Any) -> Any:
        raise asyncio.CancelledError("of a task of its own")

    wired = container(echo=rep())
    members = {"on_request": Gated.on_request, "endpoint": "echo"}
    cancelling = type("Cancelling", (Agent,), {**members, hook: cancelled})
    if hook == "on_start":
        with pytest.raises(AgentError, match="on_start of cancelling raised CancelledError"):
            await run([cancelling], wired, handle_signals=False)
        return
    async with running([cancelling], wired) as (servers, _, _):
        with pytest.raises(RequestFailed, match="CancelledError: of a task of its own"):
            await ask(wired, "echo", {})
        assert servers[0].failed == 1


async def test_an_error_with_the_name_of_a_file_that_is_not_utf_8_is_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A lone surrogate in the error's text becomes a question mark."""
    caplog.set_level(logging.CRITICAL, "app.agents.server")  # xdist cannot send the report with such a log

    class Opening(Agent):
        endpoint = "echo"

        def on_request(self, message: dict[str, Any]) -> dict[str, Any]:
            raise FileNotFoundError("no file caf\udce9")

    wired = container(echo=rep())
    async with running([Opening], wired):
        with pytest.raises(RequestFailed, match=r"FileNotFoundError: no file caf\?"):
            await ask(wired, "echo", {})


class Slow(Agent):
    endpoint = "jobs"
    concurrency = 1

    def __init__(self, *, may_drop: bool) -> None:
        super().__init__()
        self.may_drop = may_drop  # type: ignore[misc]
        self.gate = asyncio.Event()
        self.entered = 0

    async def on_message(self, message: dict[str, Any]) -> None:
        self.entered += 1
        await self.gate.wait()


@pytest.mark.parametrize("may_drop", [False, True])
async def test_what_waits_in_a_pull_is_warned_of_unless_it_may_be_dropped(
    may_drop: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages that a stopped agent has not handled are lost with a warning; not if the agent says that they may be."""
    wired = container(jobs=SocketConfig(SocketType.PULL, f"inproc://{uuid.uuid4().hex}"))
    agent = Slow(may_drop=may_drop)
    async with running([agent], wired) as (servers, stop, _):
        publisher = wired.publishers.jobs()
        publisher.send({})
        await eventually_async(lambda: agent.entered)
        for _ in range(4):
            publisher.send({})
        stop.set()
        await eventually_async(lambda: servers[0].state is State.DRAINING)
        agent.gate.set()

    assert agent.entered == 1
    assert ("received messages that nobody had read" in caplog.text) is not may_drop


async def test_instances_of_one_class_have_counts_of_their_own() -> None:
    """Two instances with names are counted apart."""

    class Once(Agent):
        async def run(self) -> None:
            await asyncio.sleep(0)

    summary = await run([Once("one"), Once("two")], container(), handle_signals=False)

    assert summary.handled == {"one": 0, "two": 0}


def _with(**members: Any) -> type[Agent]:
    return type("Wrong", (Agent,), {"endpoint": "echo", "on_request": Gated.on_request, **members})


@pytest.mark.parametrize(
    ("agents", "options", "complaint"),
    [
        ([], {}, "no agents to run"),
        ([42], {}, "42 is not an agent; give a class derived from Agent"),
        ([_with(), _with()], {}, r"2 agents are called 'wrong'; give each instance a name of its own"),
        ([_with(__init__=lambda self, number: None)], {}, "Wrong needs arguments .*; give an instance"),
        ([_with(__init__=lambda self: None)], {}, r"Wrong has no name; call super\(\).__init__\(\)"),
        ([_with(concurrency=0)], {}, "Wrong.concurrency is 0; it must be a whole number from 1 up"),
        ([_with(run=lambda self: None)], {}, "Wrong.run must be `async def`"),
        ([_with(endpoint="ecko")], {}, r"Wrong.endpoint is 'ecko': no \[sockets.ecko\].* did you mean 'echo'"),
        ([_with(endpoint=5)], {}, "Wrong.endpoint is 5; it must be a SocketConfig"),
        ([_with()], {"modules": ["json"]}, "modules has 'json', which is no module"),
    ],
)
async def test_what_cannot_run_is_refused(agents: list[Any], options: dict[str, Any], complaint: str) -> None:
    """One line names the agent, the value and what to do."""
    with pytest.raises(AgentDefinitionError, match=complaint):
        await run(agents, container(echo=rep()), handle_signals=False, **options)
