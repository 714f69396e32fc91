"""Agents served over real sockets, in this process."""

import asyncio
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from app.agents import Agent, AgentDefinitionError, DrainExceeded, State, run
from app.containers import Provide, inject
from app.pools.errors import RequestFailed
from app.pools.zmq_pool import Peer, Publisher, SocketConfig, SocketType
from tests.support.agents import Gated, ask, container, rep, running
from tests.support.waiting import eventually_async


class Echo(Agent):
    endpoint = "echo"

    async def on_request(self, message: dict[str, Any]) -> dict[str, Any]:
        return {"echo": message}


class Blocking(Agent):
    endpoint = "echo"
    concurrency = 4

    def __init__(self) -> None:
        super().__init__()
        self.barrier = threading.Barrier(4)

    def on_request(self, message: dict[str, Any]) -> dict[str, Any]:
        self.barrier.wait(20)
        return {"thread": threading.get_ident()}


class Asking(Agent):
    endpoint = "asking"

    @inject
    async def on_request(self, message: dict[str, Any], echo: Peer = Provide["peers.echo"]) -> dict[str, Any]:
        return await echo.ask_async(message)


class Counting(Agent):
    endpoint = "events"

    def __init__(self) -> None:
        super().__init__()
        self.received: list[tuple[str, dict[str, Any]]] = []

    async def on_message(self, message: dict[str, Any], topic: str) -> None:
        if message.get("bad"):
            raise ValueError("bad message")
        self.received.append((topic, message))


class Writing(Agent):
    endpoint = "echo"

    @inject
    async def on_start(self, db: Any = Provide["databases.main.handle"]) -> None:
        await db.execute_query_async("CREATE TABLE seen (number INTEGER)")

    @inject
    async def on_request(self, message: dict[str, Any], db: Any = Provide["databases.main.handle"]) -> dict[str, Any]:
        await db.execute_query_async("INSERT INTO seen VALUES (?)", (message["number"],))
        rows = await db.execute_query_async("SELECT count(*) FROM seen")
        return {"count": rows[0][0]}


async def test_an_agent_answers_requests() -> None:
    """A request reaches ``on_request`` as a dictionary and its answer comes back."""
    wired = container(echo=rep())
    async with running([Echo], wired) as (servers, _, _):
        assert await ask(wired, "echo", {"number": 1}) == {"echo": {"number": 1}}
        assert servers[0].handled == 1
        assert State.READY is servers[0].state


async def test_requests_are_handled_side_by_side() -> None:
    """Plain functions run in threads of their own, as many at once as the agent allows."""
    wired = container(echo=rep())
    async with running([Blocking], wired):
        answers = await asyncio.gather(*(ask(wired, "echo", {}) for _ in range(4)))

    assert len({answer["thread"] for answer in answers}) == 4


async def test_an_error_in_a_handler_is_the_answer() -> None:
    """The asking side gets an error with the kind and the text, and the agent goes on."""

    class Failing(Agent):
        endpoint = "echo"

        async def on_request(self, message: dict[str, Any]) -> Any:
            if message.get("fail"):
                raise KeyError("no such book")
            return ["not", "a", "dict"]

    wired = container(echo=rep())
    async with running([Failing], wired) as (servers, _, _):
        with pytest.raises(RequestFailed, match="KeyError: 'no such book'"):
            await ask(wired, "echo", {"fail": True})
        with pytest.raises(RequestFailed, match="MessageError: an agent answers with a dict, not with list"):
            await ask(wired, "echo", {})
        assert servers[0].failed == 2


async def test_a_request_that_is_not_json_is_answered_with_an_error() -> None:
    """A client that sends anything else is told so."""
    wired = container(echo=rep())
    config = SocketConfig(SocketType.REQ, wired.sockets.echo.config.endpoint)
    async with running([Echo], wired):
        answer = await wired.zmq_pool().request_async(config, b"\xff not json", timeout=20)

    assert b"MessageError" in answer


async def test_an_agent_asks_another_one_by_injection() -> None:
    """A peer is injected by name and reaches the other agent."""
    wired = container(echo=rep(), asking=rep())
    async with running([Echo, Asking], wired):
        assert await ask(wired, "asking", {"q": 1}) == {"echo": {"q": 1}}


async def test_published_messages_reach_a_subscriber_with_their_topic() -> None:
    """``on_message`` receives the topic if it asks for it, and an error in it costs only that message."""
    wired = container(events=SocketConfig(SocketType.SUB, f"inproc://{uuid.uuid4().hex}"))
    counting = Counting()
    async with running([counting], wired) as (servers, _, _):
        publisher: Publisher = wired.publishers.events()
        publisher.send({"bad": True}, topic="news")
        publisher.send({"number": 1}, topic="news")
        await eventually_async(lambda: counting.received)
        assert counting.received == [("news", {"number": 1})]
        assert servers[0].failed == 1


async def test_pushed_messages_reach_two_workers() -> None:
    """Two agents of one class share the work of a PUSH socket, nothing is lost between them."""
    endpoint = f"inproc://{uuid.uuid4().hex}"
    wired = container(events=SocketConfig(SocketType.PULL, endpoint))

    class Worker(Agent):
        endpoint = "events"

        def __init__(self, name: str) -> None:
            super().__init__(name)
            self.numbers: list[int] = []

        async def on_message(self, message: dict[str, Any]) -> None:
            self.numbers.append(message["number"])

    workers = [Worker("one"), Worker("two")]
    async with running(workers, wired):
        publisher: Publisher = wired.publishers.events()
        for number in range(100):
            publisher.send({"number": number})
        await eventually_async(lambda: sum(len(worker.numbers) for worker in workers) == 100)

    assert list(range(100)) == sorted(number for worker in workers for number in worker.numbers)
    assert all(worker.numbers for worker in workers)


async def test_hooks_receive_connections_and_give_them_back() -> None:
    """Fifty requests at once use leases of the container's pool, and none stays checked out."""
    wired = container(echo=rep())
    async with running([Writing], wired):
        counts = await asyncio.gather(*(ask(wired, "echo", {"number": number}) for number in range(50)))
        stats = wired.sql_pool().get_stats()

    assert max(count["count"] for count in counts) == 50
    assert stats["metrics"]["active_connections"] == 0


async def test_a_stop_finishes_what_is_in_flight_and_refuses_the_rest() -> None:
    """Requests in flight are answered; one that comes while draining is told that it was not executed."""
    wired = container(echo=rep())
    gated = Gated()
    async with running([gated], wired) as (servers, stop, task):
        asking = [asyncio.create_task(ask(wired, "echo", {"number": number})) for number in range(5)]
        await eventually_async(lambda: gated.entered == 5)
        stop.set()
        await eventually_async(lambda: State.DRAINING is servers[0].state)
        with pytest.raises(RequestFailed, match="AgentStopping: gated is stopping; the request was not executed"):
            await ask(wired, "echo", {"number": 99})
        gated.gate.set()
        answers = await asyncio.gather(*asking)
        summary = await task

    assert list(range(5)) == [answer["number"] for answer in answers]
    assert summary.drained == {"gated": 5}
    assert gated.entered == 5


async def test_an_agent_that_is_asked_drains_after_the_one_that_asks() -> None:
    """A request in flight that needs another agent gets its answer although both are told to stop."""
    wired = container(echo=rep(), asking=rep())
    gated = Gated()
    async with running([gated, Asking], wired) as (_, stop, task):
        asking = asyncio.create_task(ask(wired, "asking", {"number": 7}))
        await eventually_async(lambda: gated.entered == 1)
        stop.set()
        gated.gate.set()

        assert await asking == {"number": 7}
        await task


async def test_a_drain_that_takes_too_long_is_cut_off_and_said() -> None:
    """Work that does not end within the limit is cancelled, counted and raised."""
    wired = container(echo=rep())
    gated = Gated()
    async with running([gated], wired, drain_timeout=0.2) as (_, stop, task):
        asking = asyncio.create_task(ask(wired, "echo", {"number": 1}))
        await eventually_async(lambda: gated.entered == 1)
        asking.cancel()  # it waits in this container's own pool, which would wait for it in turn
        stop.set()
        with pytest.raises(DrainExceeded, match=r"gated: 1 in flight did not end within 0\.2 s"):
            await task


async def test_an_agents_own_work_is_cancelled_at_the_stop() -> None:
    """``run`` goes on until the agent stops, and ``on_stop`` is called after it."""
    log: list[str] = []

    class Working(Agent):
        async def on_start(self) -> None:
            log.append("start")

        async def run(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                log.append("cancelled")

        async def on_stop(self) -> None:
            log.append("stop")

    async with running([Working], container()):
        pass

    assert log == ["start", "cancelled", "stop"]


async def test_agents_that_have_ended_their_work_end_the_run() -> None:
    """When every agent has only work of its own, and all of it is done, the run returns."""

    class Finishing(Agent):
        async def run(self) -> None:
            await asyncio.sleep(0)

    summary = await run([Finishing("one"), Finishing("two")], container(), handle_signals=False)

    assert summary.failed == {"one": 0, "two": 0}


@pytest.mark.parametrize("hook", ["on_start", "run"])
async def test_a_crash_stops_all_agents_and_is_raised(hook: str) -> None:
    """An exception in an agent's start or own work ends the run, with the other agents stopped cleanly."""
    log: list[str] = []

    async def crash(self: Agent) -> None:
        raise RuntimeError("out of paper")

    class Healthy(Agent):
        endpoint = "echo"

        async def on_request(self, message: dict[str, Any]) -> dict[str, Any]:
            return {}

        async def on_stop(self) -> None:
            log.append("healthy stopped")

    crashing = type("Crashing", (Agent,), {"run": Healthy.on_stop, hook: crash})

    with pytest.raises((RuntimeError, ExceptionGroup)) as caught:
        await run([Healthy, crashing], container(echo=rep()), handle_signals=False)

    assert "healthy stopped" in log
    assert "out of paper" in str([caught.value, *getattr(caught.value, "exceptions", ())])


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({}, "has neither an endpoint nor run"),
        ({"endpoint": "echo"}, r"receives on REP, so it needs on_request\(self, message\)"),
        ({"endpoint": SocketConfig(SocketType.PUB, "inproc://x", bind=True)}, "receives on a socket of type PUB"),
    ],
)
async def test_an_agent_that_does_not_fit_its_endpoint_is_refused(members: dict[str, Any], complaint: str) -> None:
    """What is missing is said by class name before anything is served."""
    lacking = type("Lacking", (Agent,), members)

    with pytest.raises(AgentDefinitionError, match=f"Lacking {complaint}"):
        await run([lacking], container(echo=rep()), handle_signals=False)


def test_an_agents_name_comes_from_its_class() -> None:
    """A class name in capitals becomes a lower-case name with hyphens, unless a name is given."""

    class DocSearch(Agent): ...

    assert DocSearch().name == "doc-search"
    assert DocSearch("other").name == "other"
    names: Callable[[Agent], str] = repr
    assert names(DocSearch("other")) == "<DocSearch 'other'>"
