"""What ``inject`` does around one call."""

import asyncio
import inspect
import random
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing
from typing import Any

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Provider, as_int

from app.containers import (
    Lease,
    LeaseKindError,
    LeaseNotOpenError,
    LeaseProvider,
    Lifecycle,
    NotWiredError,
    Pooled,
    Provide,
    inject,
)
from app.containers.wiring import Wiring
from tests.support.ledger import Connection, Ledger, LedgerContainer
from tests.support.modules import module_with

CALLS = 50


@inject
def plain(value: int, first: Connection = Provide["first"], second: Connection = Provide["second"]) -> Any:
    """Say what was received."""
    assert first.open
    assert second.open
    return value, first, second


@inject
def failing(first: Connection = Provide["first"], second: Connection = Provide["second"]) -> None:
    raise ZeroDivisionError("the body failed")


@inject
def nested(first: Connection = Provide["first"]) -> tuple[int, int, bool]:
    _, inner, _ = plain(0)
    return first.number, inner.number, first.open


@inject
def greet(greeting: str = Provide["greeting"], *, name: str = "world") -> str:
    return f"{greeting}, {name}"


@inject
def counting(upto: int, first: Connection = Provide["first"]) -> Iterator[tuple[int, bool]]:
    for number in range(upto):
        yield number, first.open


@inject
async def coroutine(first: Connection = Provide["first"], second: Connection = Provide["second"]) -> Any:
    await asyncio.sleep(random.random() / 1000)
    assert first.open
    assert second.open
    return first, second


@inject
async def endless(first: Connection = Provide["first"]) -> None:
    await asyncio.Event().wait()


@inject
async def asynchronous_counting(upto: int, first: Connection = Provide["first"]) -> AsyncIterator[tuple[int, bool]]:
    for number in range(upto):
        yield number, first.open


@inject
async def async_only(lease: Connection = Provide["asynchronous"]) -> bool:
    return lease.open


@inject
def async_only_in_a_function(lease: Connection = Provide["asynchronous"]) -> None: ...


class Service:
    """A class with every kind of method."""

    @inject
    def method(self, first: Connection = Provide["first"]) -> bool:
        return first.open

    @classmethod
    @inject
    def class_method(cls, first: Connection = Provide["first"]) -> tuple[type, bool]:
        return cls, first.open

    @staticmethod
    @inject
    def static_method(first: Connection = Provide["first"]) -> bool:
        return first.open


class Heir(Service):
    """A class that inherits them."""


class OnlyAsync:
    """A context manager that only asyncio can enter."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def __aenter__(self) -> Connection:
        return self.connection

    async def __aexit__(self, *error: object) -> None: ...


class Container(LedgerContainer):
    asynchronous = providers.Factory(Lease, lambda: OnlyAsync(Connection(0)))


@pytest.fixture
def container() -> Iterator[Any]:
    container = Container()
    wiring = Wiring(container, [sys.modules[__name__]])
    wiring.connect()
    yield container
    wiring.disconnect()


@pytest.fixture
def ledger(container: Any) -> Iterator[Ledger]:
    ledger: Ledger = container.ledger()
    yield ledger
    assert ledger.leased == []


def test_a_call_receives_open_leases_that_are_closed_when_it_ends(ledger: Ledger) -> None:
    """Each parameter gets a lease of its own, open in the body and returned after it, the last one first."""
    value, first, second = plain(7)

    assert value == 7
    assert first is not second
    assert [second, first] == ledger.returned
    assert not first.open


def test_an_exception_reaches_each_lease(ledger: Ledger) -> None:
    """The error of the body is what ends every lease, so that a pool can roll back or discard."""
    with pytest.raises(ZeroDivisionError) as caught:
        failing()

    assert [caught.value, caught.value] == [connection.ended_by for connection in ledger.returned]


def test_a_lease_that_fails_to_open_closes_the_earlier_ones(ledger: Ledger) -> None:
    """If the second checkout fails, the first is returned with that error, and the body never runs."""
    opened = ledger.open

    def open_once() -> Connection:
        connection = opened()
        ledger.failing["open"] = TimeoutError("none free")
        return connection

    ledger.open = open_once  # type: ignore[method-assign]

    with pytest.raises(TimeoutError, match="none free"):
        plain(1)

    assert ledger.leased == []
    assert len(ledger.returned) == 1


def test_an_argument_passed_by_name_or_by_position_wins(ledger: Ledger) -> None:
    """A caller's own argument is used as it is, and nothing is checked out for it."""
    mine = Connection(100)

    assert mine is plain(1, mine)[1]
    assert mine is plain(1, second=mine)[2]
    assert (1, mine, mine) == plain(1, mine, mine)
    assert len(ledger.returned) == 2


def test_a_nested_call_gets_its_own_lease(ledger: Ledger) -> None:
    """An inner call neither shares nor closes the outer call's connection."""
    outer, inner, still_open = nested()

    assert outer != inner
    assert still_open


def test_a_plain_provider_gives_its_value(ledger: Ledger) -> None:
    """What is not a lease is injected as dependency-injector does."""
    assert greet() == "hello, world"
    assert greet("good day", name="all") == "good day, all"


def test_fifty_threads_never_share_a_lease() -> None:
    """Concurrent synchronous calls each have a connection of their own."""
    barrier = threading.Barrier(CALLS)
    seen: list[Connection] = []

    @inject
    def meet(first: Connection = Provide["first"]) -> None:
        barrier.wait(30)
        seen.append(first)

    threads = [threading.Thread(target=meet) for _ in range(CALLS)]
    with Lifecycle(Container(), modules=[module_with(meet)]):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    assert len({connection.number for connection in seen}) == CALLS


async def test_fifty_tasks_never_share_a_lease(ledger: Ledger) -> None:
    """Concurrent coroutine calls each have two connections of their own."""
    pairs = await asyncio.gather(*(coroutine() for _ in range(CALLS)))

    assert len({connection.number for pair in pairs for connection in pair}) == 2 * CALLS


async def test_a_cancelled_call_returns_its_lease_with_the_cancellation(ledger: Ledger) -> None:
    """Cancelling a call ends its lease with ``CancelledError``."""
    task = asyncio.create_task(endless())
    while not ledger.leased:
        await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(ledger.returned[0].ended_by, asyncio.CancelledError)


async def test_a_storm_of_cancellations_leaves_nothing_checked_out(ledger: Ledger) -> None:
    """Wherever 500 calls are cancelled, every lease comes back."""
    tasks = [asyncio.create_task(coroutine()) for _ in range(500)]
    for task in random.sample(tasks, len(tasks)):
        if random.random() < 0.5:
            await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert ledger.leased == []


def test_a_generator_holds_its_lease_until_it_ends(ledger: Ledger) -> None:
    """The connection stays open while items are consumed and is returned after the last."""
    assert list(counting(2)) == [(0, True), (1, True)]
    assert len(ledger.returned) == 1


def test_a_generator_left_early_returns_its_lease(ledger: Ledger) -> None:
    """Closing a generator before its end returns the connection."""
    items = counting(10)
    next(items)
    assert len(ledger.leased) == 1

    items.close()

    assert ledger.leased == []


async def test_an_async_generator_left_early_returns_its_lease(ledger: Ledger) -> None:
    """A consumer that breaks out within ``aclosing`` has returned the connection when the block ends."""
    async with aclosing(asynchronous_counting(10)) as items:
        async for _, is_open in items:
            assert is_open
            break

    assert ledger.leased == []
    assert len(ledger.returned) == 1


def test_an_async_generator_function_is_still_one() -> None:
    """Decorating keeps the kind of the function, which frameworks ask for."""
    assert inspect.isasyncgenfunction(asynchronous_counting)
    assert inspect.iscoroutinefunction(coroutine)
    assert inspect.isgeneratorfunction(counting)


def test_signature_and_docstring_survive() -> None:
    """The decorated function looks like the original to tools."""
    assert list(inspect.signature(plain).parameters) == ["value", "first", "second"]
    assert plain.__doc__ == "Say what was received."
    assert plain.__name__ == "plain"


@pytest.mark.parametrize("kind", [Service, Heir])
def test_methods_of_every_kind_are_injected(kind: type[Service], ledger: Ledger) -> None:
    """Instance, class and static methods receive leases, inherited ones too."""
    assert kind().method()
    assert (kind, True) == kind.class_method()
    assert kind.static_method()


async def test_a_lease_that_only_asyncio_opens_works_in_a_coroutine(ledger: Ledger) -> None:
    """An asynchronous context manager is entered in a coroutine function."""
    assert await async_only()


def test_a_lease_that_only_asyncio_opens_is_refused_in_a_function(ledger: Ledger) -> None:
    """A synchronous function gets an error that names the parameter and says what to do."""
    with pytest.raises(LeaseKindError, match=r"'lease' can only be opened in an async function"):
        async_only_in_a_function()


def test_a_forgotten_decorator_says_what_to_do(ledger: Ledger) -> None:
    """A function without ``@inject`` may get a lease itself, whose every attribute is an error with the cure."""
    with pytest.raises(LeaseNotOpenError, match="decorate the function that receives it with @inject"):
        Container().first().number  # noqa: B018 - an attribute of the connection that the lease would open


@pytest.mark.parametrize(
    "use",
    [
        lambda lease: lease(),
        lambda lease: list(lease),
        lambda lease: lease["key"],
        lambda lease: lease.execute("SELECT 1"),
        lambda lease: ExitStack().enter_context(lease),
        lambda lease: asyncio.run(AsyncExitStack().enter_async_context(lease)),
        lambda lease: lease.__await__(),
    ],
    ids=["call", "iterate", "index", "method", "with", "async with", "await"],
)
def test_a_lease_that_is_used_as_the_connection_says_what_to_do(use: Any) -> None:
    """However a raw lease is used, the error is the one with the cure."""
    with pytest.raises(LeaseNotOpenError, match="decorate the function that receives it with @inject"):
        use(Container().first())


def test_a_call_without_a_wired_container_says_what_to_do() -> None:
    """Before any wiring a call names the function, the parameter and the cure."""
    with pytest.raises(NotWiredError, match=r"test_injection\.plain: nothing was injected for 'first'"):
        plain(1)


def test_decorating_a_function_without_markers_is_refused() -> None:
    """``@inject`` on a function that has nothing to inject is a mistake that shows at once."""
    with pytest.raises(TypeError, match="has no parameter to inject"):

        @inject
        def nothing(value: int) -> None: ...


def test_an_override_reaches_decorated_functions(container: Any) -> None:
    """dependency-injector's own ``override`` puts a fake in the place of a lease."""
    fake = Connection(99)

    with container.first.override(providers.Object(fake)):
        assert fake is plain(1)[1]
    assert fake is not plain(1)[1]


def test_a_copied_container_has_a_pool_of_its_own() -> None:
    """Each instance of a container class leases from its own pool."""
    one, other = Container(), Container()

    assert one.ledger() is not other.ledger()
    assert one.first().open().ledger is one.ledger()


def test_a_class_level_marker_is_resolved_like_a_name() -> None:
    """``Provide[Container.first]`` and ``Provide["first"]`` are the same."""

    class Local(containers.DeclarativeContainer):
        ledger = Pooled(Ledger)
        first: LeaseProvider[Connection] = LeaseProvider(ledger, "lease", "first")

    @inject
    def by_attribute(first: Connection = Provide[Local.first]) -> bool:
        return first.open

    with Lifecycle(Local(), modules=[module_with(by_attribute)]):
        assert by_attribute()


def test_dependency_injectors_own_wire_serves_our_wrapper() -> None:
    """``container.wire`` binds what ``inject`` decorated, with its markers' modifiers, and ``unwire`` unbinds it."""

    class Configured(containers.DeclarativeContainer):
        config = providers.Configuration()
        ledger = Pooled(Ledger)
        first: LeaseProvider[Connection] = LeaseProvider(ledger, "lease", "first")

    @inject
    def handle(
        first: Connection = Provide["first"],
        limit: int = Provide["config.limit", as_int()],
        factory: Any = Provider["first"],
    ) -> tuple[bool, int, bool]:
        return first.open, limit, isinstance(factory(), Lease)

    module = module_with(handle)
    container = Configured()
    container.config.limit.from_value("7")
    container.wire(modules=[module])

    assert handle() == (True, 7, True)

    container.unwire()
    with pytest.raises(NotWiredError):
        handle()
