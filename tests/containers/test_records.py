"""What a decorated function remembers between its calls, and for how long it is remembered itself."""

import asyncio
import gc
import linecache
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from dependency_injector import containers, providers, wiring

from app.containers import LeaseProvider, Lifecycle, NotWiredError, Pooled, Provide, UnresolvedMarkersError, inject
from app.containers.testing import override
from tests.support.ledger import Connection, Ledger, LedgerContainer
from tests.support.modules import module_with
from tests.support.threads import together


def make_function() -> Callable[[], bool]:
    """Decorate a function that refers to itself, as a factory of handlers may do again and again."""

    @inject
    def handle(again: bool = False, first: Connection = Provide["first"]) -> bool:
        return handle(False) if again else first.open

    return handle


def test_a_function_learns_of_each_override_and_of_its_end() -> None:
    """Overrides of the lease and of its pool, in any order and from the first call on, are seen by the next call."""

    @inject
    def use(first: Any = Provide["first"], second: Any = Provide["second"]) -> tuple[Any, Any]:
        return first, second

    container: Any = LedgerContainer()
    other = Ledger(name="other")
    with Lifecycle(container, modules=[module_with(use)]):
        for _ in range(3):
            assert isinstance(use()[0], Connection)
            with override(container, first="fake"):
                assert "fake" == use()[0]
                with override(container, first="inner", second=providers.Callable(str)):
                    assert ("inner", "") == use()
                assert "fake" == use()[0]
            with container.ledger.override(providers.Object(other)):
                use()
            use()
        container.first.override(providers.Object("fake"))
        container.first.override(providers.Object("inner"))
        container.first.reset_override()
        assert isinstance(use()[0], Connection)

    assert 6 == len(other.returned)


def test_a_function_learns_of_a_new_pool() -> None:
    """A pool that was reset is not leased from again."""

    @inject
    def use(first: Connection = Provide["first"]) -> Connection:
        return first

    container: Any = LedgerContainer()
    with Lifecycle(container, modules=[module_with(use)]):
        use()
        before = container.ledger()
        container.ledger.reset()
        use()

        assert 1 == len(before.returned) == len(container.ledger().returned)


def test_overrides_race_with_calls() -> None:
    """Whatever calls run at the same time, the first call after an override has it, and the first after its end not."""

    @inject
    def use(first: Any = Provide["first"]) -> Any:
        return first

    container: Any = LedgerContainer()
    done = threading.Event()

    def call() -> None:
        while not done.is_set():
            use()

    with Lifecycle(container, modules=[module_with(use)]):
        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for number in range(300):
                with container.first.override(providers.Object(number)):
                    assert number == use()
                assert isinstance(use(), Connection)
        finally:
            done.set()
            for thread in threads:
                thread.join(30)


def test_a_stopped_container_is_not_kept_alive() -> None:
    """Functions remember nothing of a container that has stopped."""

    @inject
    def use(first: Connection = Provide["first"], greeting: str = Provide["greeting"]) -> None: ...

    container: Any = LedgerContainer()
    with Lifecycle(container, modules=[module_with(use)]):
        use()
        pool = weakref.ref(container.ledger())
    del container
    gc.collect()

    assert pool() is None


def test_functions_made_in_a_factory_are_freed() -> None:
    """A function that is decorated inside another one goes when nobody has it, and leaves nothing behind."""
    make_function()
    gc.collect()
    registered, files = len(wiring._patched_registry._callables), len(linecache.cache)

    functions = [make_function() for _ in range(100)]
    with Lifecycle(LedgerContainer(), modules=[__name__]):
        assert all(function(True) for function in functions)
        freed = [weakref.ref(function) for function in functions]
        del functions
        gc.collect()
        assert {None} == {function() for function in freed}

    assert registered == len(wiring._patched_registry._callables)
    assert files == len(linecache.cache)


def test_functions_decorated_after_the_start_are_served() -> None:
    """A function of a module that is served receives its leases at the first call, in whichever thread that is."""
    with Lifecycle(LedgerContainer(), modules=[__name__]):
        for _ in range(20):
            handle = make_function()
            assert [True] * 4 == together(handle, 4)
    with pytest.raises(NotWiredError):
        handle()


def test_a_marker_misspelt_after_the_start_is_named_at_each_call() -> None:
    """What would have stopped the start is an error of the call, with the nearest name."""
    module = module_with()
    with Lifecycle(LedgerContainer(), modules=[module]):

        @inject
        def late(first: Connection = Provide["frist"]) -> None: ...

        late.__module__ = module.__name__
        for _ in range(2):
            with pytest.raises(UnresolvedMarkersError, match="did you mean 'first'"):
                late()


def test_generators_decorated_after_the_start_are_served() -> None:
    """So it is with what is not compiled."""
    with Lifecycle(LedgerContainer(), modules=[__name__]):

        @inject
        def late(first: Connection = Provide["first"]) -> Any:
            yield first.open

        assert [True] == list(late())


async def test_values_of_changing_types_are_injected_as_they_are() -> None:
    """A provider may give an awaitable thing once and a plain one then; a coroutine awaits what is pending only."""

    class Awaitable:
        def __await__(self) -> Any:
            raise AssertionError("nobody asked for it to be awaited")

    async def later() -> str:
        return "later"

    given: list[Any] = [1, "two", Awaitable(), None, later(), Awaitable(), 2, later()]
    container: Any = containers.DynamicContainer()
    container.value = providers.Callable(given.pop, 0)
    container.value.disable_async_mode()

    @inject
    async def use(value: Any = Provide["value"]) -> Any:
        await asyncio.sleep(0)
        return value

    async with Lifecycle(container, modules=[module_with(use)]):
        received = [await use() for _ in range(len(given))]

    assert [1, "two", None, "later", 2, "later"] == [value for value in received if not isinstance(value, Awaitable)]


def test_a_method_that_gives_managers_of_changing_kinds_is_entered_each_time() -> None:
    """A pool may lend by different kinds of manager."""

    class Moody(Ledger):
        def lease(self, config: object) -> Any:
            return type("Manager", (), {"__enter__": lambda _: "lent", "__exit__": lambda *_: None})()

    class Container(containers.DeclarativeContainer):
        pool = Pooled(Moody)
        lent: LeaseProvider[str] = LeaseProvider(pool, "lease", None)

    @inject
    def use(lent: str = Provide["lent"]) -> str:
        return lent

    with Lifecycle(Container(), modules=[module_with(use)]):
        assert {"lent"} == {use() for _ in range(250)}
