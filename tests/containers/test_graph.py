"""What is wrong with a container's graph shows before anything starts."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from dependency_injector import containers, providers

from app.containers import (
    AlreadyWiredError,
    CapturedLeaseError,
    Lease,
    LeaseProvider,
    Lifecycle,
    PerMessage,
    Pooled,
    Provide,
    UnresolvedMarkersError,
    inject,
)
from tests.support.ledger import Connection, Ledger, LedgerContainer
from tests.support.modules import module_with


class Service:
    def __init__(self, connection: Any = None, more: Any = None) -> None: ...


@pytest.mark.parametrize("through", ["directly", "a factory", "a list"])
def test_a_singleton_that_would_keep_a_lease_is_refused(through: str) -> None:
    """A lease lives for one call; the error names who would keep it and what to do instead."""

    class Container(containers.DeclarativeContainer):
        ledger = Pooled(Ledger)
        library: LeaseProvider[Connection] = LeaseProvider(ledger, "lease", "x")
        needed = {
            "directly": library,
            "a factory": providers.Factory(Service, library),
            "a list": providers.List(providers.Factory(Service, more=library)),
        }[through]
        service = providers.Singleton(Service, needed)

    with (
        pytest.raises(
            CapturedLeaseError, match="service lives as long as the container and would keep a lease on library"
        ),
        Lifecycle(Container()),
    ):
        pass


def test_a_singleton_may_have_the_pool_or_a_factory_may_have_a_lease() -> None:
    """What lives for one use may hold a lease, and what lives long may hold the pool."""

    class Container(containers.DeclarativeContainer):
        ledger = Pooled(Ledger)
        library: LeaseProvider[Connection] = LeaseProvider(ledger, "lease", "x")
        service = providers.Singleton(Service, ledger)
        unit = providers.Factory(Service, library)

    with Lifecycle(Container()) as lifecycle:
        assert {"ledger"} == set(lifecycle.report)


async def slow_resource() -> AsyncIterator[str]:
    yield "value"


async def slow_coroutine() -> str:
    return "value"


@pytest.mark.parametrize("provider", [providers.Resource(slow_resource), providers.Coroutine(slow_coroutine)])
async def test_an_asynchronous_provider_in_a_function_is_refused(provider: Any) -> None:
    """The start says that the function must be asynchronous."""

    @inject
    def handle(value: str = Provide["slow"]) -> None: ...

    container = containers.DynamicContainer()
    container.slow = provider
    lifecycle = Lifecycle(container, modules=[module_with(handle)])

    with pytest.raises(UnresolvedMarkersError, match="its provider is asynchronous; make the function `async def`"):
        await lifecycle.__aenter__()


@asynccontextmanager
async def open_for_coroutines() -> AsyncIterator[str]:
    yield "lent"


class AsyncShelf(Ledger):
    """A pool whose leases open in asyncio only, told in each way that there is."""

    @asynccontextmanager
    async def decorated(self, config: object) -> AsyncIterator[str]:
        yield "lent"

    def annotated(self, config: object) -> AbstractAsyncContextManager[str]:
        return self.decorated(config)


class Shelves(containers.DeclarativeContainer):
    pool = Pooled(AsyncShelf)
    slow = providers.Resource(slow_resource)
    decorated: LeaseProvider[str] = LeaseProvider(pool, "decorated", None)
    annotated: LeaseProvider[str] = LeaseProvider(pool, "annotated", None)
    per_message: PerMessage[str] = PerMessage(decorated)
    of_a_factory = providers.Factory(Lease, providers.Object(open_for_coroutines))
    through_a_factory = providers.Factory(Service, slow)
    through_an_attribute = slow.provided.upper.call()
    through_a_list = providers.Singleton(Service, more=providers.List(providers.Factory(Service, slow)))
    through_an_override = providers.Object("replaced")
    as_a_provider = providers.Factory(Service, slow.provider)
    both_sides: LeaseProvider[Connection] = LeaseProvider(pool, "lease", None)


Shelves.through_an_override.override(providers.Coroutine(slow_coroutine))


@pytest.mark.parametrize(
    "name", [name for name in Shelves.providers if name not in ("pool", "as_a_provider", "both_sides")]
)
async def test_what_only_a_coroutine_can_use_is_refused_in_a_function(name: str) -> None:
    """Before the start, also through factories, lists, attributes and overrides, and for each kind of lease."""

    @inject
    def handle(value: Any = Provide[name]) -> None: ...

    @inject
    async def handle_async(value: Any = Provide[name]) -> None: ...

    container: Any = Shelves()
    with pytest.raises(UnresolvedMarkersError, match=r"handle, parameter 'value': .* make the function `async def`"):
        await Lifecycle(container, modules=[module_with(handle)]).__aenter__()
    async with Lifecycle(container, modules=[module_with(handle_async)]):
        if name != "per_message":
            await handle_async()


@pytest.mark.parametrize("name", ["pool", "as_a_provider", "both_sides"])
async def test_what_a_function_can_use_is_not_refused(name: str) -> None:
    """A pool, a factory that is given an asynchronous provider as such, and a lease with two sides."""

    @inject
    def handle(value: Any = Provide[name]) -> Any:
        return value

    async with Lifecycle(Shelves(), modules=[module_with(handle)]):
        assert handle() is not None


async def test_an_asynchronous_provider_in_a_coroutine_gives_its_value() -> None:
    """A coroutine receives what the asynchronous resource yields."""

    @inject
    async def handle(value: str = Provide["slow"]) -> str:
        return value

    container = containers.DynamicContainer()
    container.slow = providers.Resource(slow_resource)
    async with Lifecycle(container, modules=[module_with(handle)]):
        assert "value" == await handle()


def test_two_running_containers_cannot_serve_one_function() -> None:
    """The second container is refused with the function's name, and the first goes on serving."""

    @inject
    def handle(first: Connection = Provide["first"]) -> bool:
        return first.open

    module = module_with(handle)
    with Lifecycle(LedgerContainer(), modules=[module]):
        with pytest.raises(AlreadyWiredError, match="handle is served by another running container"):
            Lifecycle(LedgerContainer(), modules=[module]).__enter__()
        assert handle()
    with Lifecycle(LedgerContainer(), modules=[module]):
        assert handle()


def test_two_containers_may_serve_one_module_one_after_the_other_or_different_modules_at_once() -> None:
    """What is refused is one function with two containers; each container gives its own things."""

    @inject
    def here(greeting: str = Provide["greeting"]) -> str:
        return greeting

    @inject
    def there(greeting: str = Provide["greeting"]) -> str:
        return greeting

    one, other = module_with(here), module_with(there)
    second: Any = LedgerContainer()
    with second.greeting.override(providers.Object("second")):
        with Lifecycle(LedgerContainer(), modules=[one]), Lifecycle(second, modules=[other]):
            assert ("hello", "second") == (here(), there())
        with Lifecycle(second, modules=[one, other]):
            assert ("second", "second") == (here(), there())


def test_a_refused_graph_leaves_nothing_wired_or_started() -> None:
    """After a refusal the same module can be wired to another container at once."""

    @inject
    def handle(first: Connection = Provide["first"], other: str = Provide["missing"]) -> None: ...

    module = module_with(handle)
    for _ in range(2):
        with pytest.raises(UnresolvedMarkersError):
            Lifecycle(LedgerContainer(), modules=[module]).__enter__()
