"""What is wrong with a container's graph shows before anything starts."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from dependency_injector import containers, providers

from app.containers import (
    AlreadyWiredError,
    CapturedLeaseError,
    LeaseProvider,
    Lifecycle,
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


def test_a_refused_graph_leaves_nothing_wired_or_started() -> None:
    """After a refusal the same module can be wired to another container at once."""

    @inject
    def handle(first: Connection = Provide["first"], other: str = Provide["missing"]) -> None: ...

    module = module_with(handle)
    for _ in range(2):
        with pytest.raises(UnresolvedMarkersError):
            Lifecycle(LedgerContainer(), modules=[module]).__enter__()
