"""Where dependency-injector's scope of one call breaks, ours holds: fifty calls at once, as threads and as tasks.

Each scenario is one call and what it calls in turn; it returns the connections that it used while they were open.
All fifty are inside at the same time.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from dependency_injector import containers

from app.containers import LeaseProvider, Lifecycle, Pooled, Provide, inject
from tests.support.ledger import Connection, Ledger, LedgerLease

CALLS = 50


class Meeting:
    """Lets nobody go on before all calls are here, whether they are threads or tasks."""

    def __init__(self) -> None:
        self._threads = threading.Barrier(CALLS)
        self._tasks = asyncio.Barrier(CALLS)

    def wait(self) -> None:
        self._threads.wait(30)

    async def wait_async(self) -> None:
        async with asyncio.timeout(30):
            await self._tasks.wait()


class Exhausted(LedgerLease):
    """A lease that cannot be opened."""

    def __enter__(self) -> Connection:
        raise TimeoutError("none free")


class Shelf(Ledger):
    def exhausted(self, config: object) -> LedgerLease:
        return Exhausted(self)


class Container(containers.DeclarativeContainer):
    """Leases on one pool, one of which cannot be had."""

    ledger = Pooled(Shelf)
    first: LeaseProvider[Connection] = LeaseProvider(ledger, "lease", "first")
    second: LeaseProvider[Connection] = LeaseProvider(ledger, "lease", "second")
    exhausted: LeaseProvider[Connection] = LeaseProvider(ledger, "exhausted", None)


@inject
def leaf(first: Connection = Provide["first"]) -> Connection:
    assert first.open
    return first


@inject
async def leaf_async(first: Connection = Provide["first"]) -> Connection:
    await asyncio.sleep(0)
    assert first.open
    return first


# As threads


@inject
def flat(meeting: Meeting, first: Connection = Provide["first"]) -> list[Connection]:
    meeting.wait()
    assert first.open
    return [first]


@inject
def nested(meeting: Meeting, first: Connection = Provide["first"]) -> list[Connection]:
    meeting.wait()
    inner = leaf()
    assert first.open
    assert not inner.open
    return [first, inner]


@inject
def children(meeting: Meeting, first: Connection = Provide["first"]) -> list[Connection]:
    meeting.wait()
    used: list[Connection] = []
    threads = [threading.Thread(target=lambda: used.append(leaf())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert first.open
    return [first, *used]


@inject
def a_loop_in_the_thread(meeting: Meeting, first: Connection = Provide["first"]) -> list[Connection]:
    meeting.wait()
    inner = asyncio.run(leaf_async())
    assert first.open
    return [first, inner]


@inject
def items(first: Connection = Provide["first"]) -> Iterator[Connection]:
    for _ in range(3):
        assert first.open
        yield first


@inject
def generators(meeting: Meeting, first: Connection = Provide["first"]) -> list[Connection]:
    meeting.wait()
    (item,) = set(items())
    left_early = items()
    other = next(left_early)
    left_early.close()
    assert first.open
    return [first, item, other]


# As tasks


@inject
async def flat_async(meeting: Meeting, first: Connection = Provide["first"]) -> list[Connection]:
    await meeting.wait_async()
    assert first.open
    return [first]


@inject
async def nested_async(meeting: Meeting, first: Connection = Provide["first"]) -> list[Connection]:
    await meeting.wait_async()
    inner = await leaf_async()
    assert first.open
    assert not inner.open
    return [first, inner]


@inject
async def children_async(meeting: Meeting, first: Connection = Provide["first"]) -> list[Connection]:
    await meeting.wait_async()
    used = await asyncio.gather(leaf_async(), leaf_async())
    assert first.open
    return [first, *used]


@inject
async def a_thread_of_the_task(meeting: Meeting, first: Connection = Provide["first"]) -> list[Connection]:
    await meeting.wait_async()
    inner = await asyncio.to_thread(leaf)
    assert first.open
    return [first, inner]


@inject
async def items_async(first: Connection = Provide["first"]) -> AsyncIterator[Connection]:
    for _ in range(3):
        await asyncio.sleep(0)
        assert first.open
        yield first


@inject
async def generators_async(meeting: Meeting, first: Connection = Provide["first"]) -> list[Connection]:
    await meeting.wait_async()
    (item,) = {item async for item in items_async()}
    async with aclosing(items_async()) as left_early:
        other = await anext(left_early)
    assert first.open
    return [first, item, other]


@inject
def fail(meeting: Meeting, first: Connection = Provide["first"], second: Connection = Provide["second"]) -> None:
    meeting.wait()
    raise ZeroDivisionError


@inject
async def fail_async(
    meeting: Meeting, first: Connection = Provide["first"], second: Connection = Provide["second"]
) -> None:
    await meeting.wait_async()
    raise ZeroDivisionError


@inject
def unlucky(meeting: Meeting, first: Connection = Provide["first"], second: Connection = Provide["exhausted"]) -> None:
    raise AssertionError("the body ran")


@inject
async def unlucky_async(
    meeting: Meeting, first: Connection = Provide["first"], second: Connection = Provide["exhausted"]
) -> None:
    raise AssertionError("the body ran")


async def in_threads(scenario: Callable[[Meeting], Any]) -> list[Any]:
    """Call ``scenario`` in fifty threads at once, and return what each returned or raised."""
    meeting, results = Meeting(), list[Any]()

    def call() -> None:
        try:
            results.append(scenario(meeting))
        except BaseException as error:  # noqa: BLE001 - returned to the test
            results.append(error)

    threads = [threading.Thread(target=call) for _ in range(CALLS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join, 60)
    return results


async def in_tasks(scenario: Callable[[Meeting], Awaitable[Any]]) -> list[Any]:
    """Await ``scenario`` in fifty tasks at once, and return what each returned or raised."""
    meeting = Meeting()
    return await asyncio.gather(*(scenario(meeting) for _ in range(CALLS)), return_exceptions=True)


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    container: Any = Container()
    async with Lifecycle(container, modules=[__name__]):
        yield container.ledger()
    assert [] == container.ledger().leased


@pytest.mark.parametrize(
    ("run", "scenario"),
    [
        (in_threads, flat),
        (in_threads, nested),
        (in_threads, children),
        (in_threads, a_loop_in_the_thread),
        (in_threads, generators),
        (in_tasks, flat_async),
        (in_tasks, nested_async),
        (in_tasks, children_async),
        (in_tasks, a_thread_of_the_task),
        (in_tasks, generators_async),
    ],
    ids=lambda value: value.__name__,
)
async def test_every_call_has_connections_of_its_own(run: Any, scenario: Any, ledger: Ledger) -> None:
    """Fifty connections for fifty calls, more for what they call, none shared, none used after it was closed."""
    for _ in range(5):
        used = await run(scenario)
        assert {list} == {type(each) for each in used}, used
        connections = [connection for each in used for connection in each]
        assert len(connections) == len(set(connections))
        assert not any(connection.open for connection in connections)
        assert [] == ledger.leased


@pytest.mark.parametrize(("run", "scenario"), [(in_threads, fail), (in_tasks, fail_async)], ids=["threads", "tasks"])
async def test_the_error_of_every_call_reaches_its_own_connections(run: Any, scenario: Any, ledger: Ledger) -> None:
    """Each of fifty errors ends the two connections of the call that raised it, and no other."""
    for _ in range(5):
        before = len(ledger.returned)
        errors = await run(scenario)
        assert {ZeroDivisionError} == {type(error) for error in errors}
        ended_by = [connection.ended_by for connection in ledger.returned[before:]]
        assert 2 * CALLS == len(ended_by)
        assert {2} == {sum(error is by for by in ended_by) for error in errors}


@pytest.mark.parametrize(("run", "scenario"), [(in_threads, unlucky), (in_tasks, unlucky_async)])
async def test_a_second_lease_that_cannot_be_opened_closes_the_first_in_every_call(
    run: Any, scenario: Any, ledger: Ledger
) -> None:
    """Whichever of fifty calls finds no second connection gives its first one back, and no body runs."""
    for _ in range(5):
        errors = await run(scenario)
        assert {TimeoutError} == {type(error) for error in errors}, errors
        assert [] == ledger.leased
        assert {TimeoutError} == {type(connection.ended_by) for connection in ledger.returned}
