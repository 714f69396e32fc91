"""Leases and values that belong to a message, and leases that the container keeps."""

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from app.containers import (
    ContainerError,
    ContextValue,
    Lifecycle,
    NoMessageError,
    PerContainer,
    PerMessage,
    Provide,
    inject,
    message_scope,
    message_scope_async,
)
from app.containers.testing import override
from tests.support.ledger import Connection, Ledger, LedgerContainer
from tests.support.modules import module_with


class Container(LedgerContainer):
    per_message: PerMessage[Connection] = PerMessage(LedgerContainer.first)
    per_container: PerContainer[Connection] = PerContainer(LedgerContainer.first)
    tenant: ContextValue[str] = ContextValue("tenant")
    request_id: ContextValue[str | None] = ContextValue("request_id", default=None)


@inject
def step(
    shared: Connection = Provide["per_message"], own: Connection = Provide["first"]
) -> tuple[Connection, Connection]:
    return shared, own


@inject
def failing_step(shared: Connection = Provide["per_message"]) -> None:
    raise ZeroDivisionError


@inject
async def step_async(shared: Connection = Provide["per_message"]) -> Connection:
    await asyncio.sleep(0)
    return shared


@inject
def kept(connection: Connection = Provide["per_container"]) -> Connection:
    return connection


@inject
def who(tenant: str = Provide["tenant"], request_id: str | None = Provide["request_id"]) -> tuple[str, str | None]:
    return tenant, request_id


@pytest.fixture
def container() -> Iterator[Any]:
    container: Any = Container()
    with Lifecycle(container, modules=[sys.modules[__name__]]):
        yield container


@pytest.fixture
def ledger(container: Any) -> Iterator[Ledger]:
    ledger: Ledger = container.ledger()
    yield ledger
    assert [] == ledger.leased


def test_functions_of_one_message_share_its_lease(ledger: Ledger) -> None:
    """Two calls within a message get the same connection, open until the message ends; a plain lease stays per call."""
    with message_scope():
        (shared, own), (again, other) = step(), step()
        assert shared is again
        assert own is not other
        assert shared.open
        assert not own.open

    assert not shared.open


def test_each_message_has_its_own_lease(ledger: Ledger) -> None:
    """The next message, and one nested in it, start with nothing open."""
    with message_scope():
        first, _ = step()
        with message_scope():
            nested, _ = step()
    with message_scope():
        second, _ = step()

    assert 3 == len({first.number, nested.number, second.number})


def test_an_error_of_the_message_reaches_its_lease(ledger: Ledger) -> None:
    """What ends the message ends the lease, so that the whole message is rolled back."""
    with pytest.raises(ZeroDivisionError), message_scope():
        failing_step()

    assert isinstance(ledger.returned[-1].ended_by, ZeroDivisionError)


async def test_fifty_messages_at_once_share_nothing(ledger: Ledger) -> None:
    """Tasks that each work on a message of their own have a connection each; the tasks of one message share one."""

    async def message() -> int:
        async with message_scope_async():
            connections = await asyncio.gather(*(step_async() for _ in range(3)))
            assert 1 == len({connection.number for connection in connections})
            return connections[0].number

    numbers = await asyncio.gather(*(message() for _ in range(50)))

    assert 50 == len(set(numbers))


async def test_a_cancelled_message_closes_its_lease(ledger: Ledger) -> None:
    """A cancellation while a message is worked on reaches the lease."""
    inside = asyncio.Event()

    async def message() -> None:
        async with message_scope_async():
            await step_async()
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(message())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert isinstance(ledger.returned[-1].ended_by, asyncio.CancelledError)


def test_without_a_message_the_error_says_what_to_do(ledger: Ledger) -> None:
    """A lease per message outside of one is an error that names the cure."""
    with pytest.raises(NoMessageError, match=r"use message_scope\(\)"):
        step()


def test_the_container_keeps_one_lease_until_it_stops() -> None:
    """A lease per container is opened at its first use, shared, and closed before the pool stops."""
    container: Any = Container()
    with Lifecycle(container, modules=[sys.modules[__name__]]):
        ledger = container.ledger()
        assert [] == ledger.leased
        assert kept() is kept()
        assert 1 == len(ledger.leased)

    assert ["close ledger", "stop ledger"] == ledger.log[-2:]


async def test_tasks_share_the_lease_that_the_container_keeps() -> None:
    """Coroutines that come together open it once, with its asynchronous side, and the stop closes it."""

    @inject
    async def keep(connection: Connection = Provide["per_container"]) -> Connection:
        await asyncio.sleep(0)
        return connection

    container: Any = Container()
    for _ in range(2):  # a restart begins with nothing open
        async with Lifecycle(container, modules=[module_with(keep)]):
            ledger = container.ledger()
            kept_ones = await asyncio.gather(*(keep() for _ in range(50)))
            assert 1 == len(set(kept_ones)) == len(ledger.leased)
            assert kept_ones[0].open
        assert ["close ledger", "stop ledger"] == ledger.log[-2:]
        assert not kept_ones[0].open


async def test_a_kept_lease_that_cannot_be_opened_is_tried_again() -> None:
    """The error of one attempt reaches those who wait for it, and the next call opens it."""

    @inject
    async def keep(connection: Connection = Provide["per_container"]) -> Connection:
        return connection

    container: Any = Container()
    async with Lifecycle(container, modules=[module_with(keep)]):
        container.ledger().failing["open"] = TimeoutError("none free")
        errors = await asyncio.gather(*(keep() for _ in range(10)), return_exceptions=True)
        assert {TimeoutError} == {type(error) for error in errors}
        container.ledger().failing.clear()
        assert await keep() is await keep()


def test_a_coroutine_needs_a_scope_that_can_close_what_it_opens() -> None:
    """In a container that was started without asyncio, a coroutine is told how to begin the scope."""

    @inject
    async def keep(connection: Connection = Provide["per_container"]) -> None: ...

    with (
        Lifecycle(Container(), modules=[module_with(keep)]),
        pytest.raises(
            ContainerError, match=r"begin it with `async with message_scope_async\(\)`, or `async with Lifecyc"
        ),
    ):
        asyncio.run(keep())


def test_a_test_may_give_a_value_of_the_message_itself(container: Any) -> None:
    """``override`` of a value wins over the message's and needs no message, until its block ends."""
    with override(container, tenant="fake"):
        assert ("fake", None) == who()
        with message_scope(tenant="acme", request_id="7"):
            assert ("fake", "7") == who()
    with message_scope(tenant="acme"):
        assert ("acme", None) == who()


def test_a_value_comes_from_the_message(ledger: Ledger) -> None:
    """What a message carries is injected, an inner message overrides it, and a default fills in."""
    with message_scope(tenant="acme", request_id="7"):
        assert ("acme", "7") == who()
        with message_scope(tenant="other"):
            assert ("other", "7") == who()
        assert ("acme", "7") == who()
    with message_scope(tenant="acme"):
        assert ("acme", None) == who()


def test_a_value_that_the_message_lacks_is_an_error(ledger: Ledger) -> None:
    """Without a default the error names the value."""
    with message_scope(), pytest.raises(NoMessageError, match="the value 'tenant' was asked for"):
        who()
