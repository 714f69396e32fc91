"""Stopping a container when something resists."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from dependency_injector import containers, providers

from app.containers import (
    AgentContainer,
    Lease,
    LeaseProvider,
    Lifecycle,
    LifecycleError,
    NotWiredError,
    Pooled,
    Provide,
    Resources,
    StartTimeoutError,
    StoppingError,
    StopTimeoutError,
    UnresolvedMarkersError,
    inject,
    message_scope,
)
from app.containers.testing import Fake, StubServer, override
from tests.support.ledger import Connection, Ledger, LedgerContainer
from tests.support.modules import module_with
from tests.support.waiting import eventually, eventually_async

PARTS = [f"part_{number}" for number in range(12)]


def chain(kind: Any = Ledger) -> Any:
    """Return a container of twelve parts, each of which needs the one before it."""
    container: Any = containers.DynamicContainer()
    container.log = providers.Singleton(list)
    before: Any = None
    for name in PARTS:
        before = Pooled(kind, container.log, name, needs=before)
        setattr(container, name, before)
    return container


class Stubborn(Ledger):
    """A pool whose start or stop waits for a gate, whatever time it is given and whoever cancels it."""

    gate: threading.Event
    gate_async: asyncio.Event

    def start(self) -> None:
        self._act("start")
        if "hang in start" in self.failing:
            self.gate.wait(30)

    async def start_async(self) -> None:
        self._act("start")
        while "hang in start" in self.failing and not self.gate_async.is_set():
            with suppress(asyncio.CancelledError):
                await self.gate_async.wait()

    def stop(self, timeout: float = 10.0) -> None:
        self._act("stop")
        if "hang" in self.failing:
            self.gate.wait(30)

    async def stop_async(self, timeout: float = 10.0) -> None:
        await asyncio.to_thread(self.stop, timeout)


@pytest.mark.parametrize("position", range(12))
async def test_a_start_that_fails_at_any_position_stops_what_had_started(position: int) -> None:
    """Of a chain of twelve, those before the failing part and itself are stopped, in reverse, and no other."""
    for asynchronous in (False, True):
        container = chain()
        getattr(container, PARTS[position])().failing["start"] = ConnectionError("down")
        lifecycle = Lifecycle(container)

        with pytest.raises(ConnectionError):
            await lifecycle.__aenter__() if asynchronous else lifecycle.__enter__()

        begun = [f"start {name}" for name in PARTS[: position + 1]]
        assert [*begun, *(line.replace("start", "stop") for line in reversed(begun))] == container.log()


@pytest.mark.parametrize("position", range(12))
async def test_a_start_that_hangs_at_any_position_stops_what_had_started(position: int) -> None:
    """A part that does not start in time, and does not even heed its cancellation, is named, and all is undone."""
    for asynchronous in (False, True):
        Stubborn.gate, Stubborn.gate_async = threading.Event(), asyncio.Event()
        container = chain(Stubborn)
        getattr(container, PARTS[position])().failing["hang in start"] = OSError()
        log = container.log()
        lifecycle = Lifecycle(container, start_timeout=0.25)

        with pytest.raises(StartTimeoutError, match=f"{PARTS[position]} did not start within"):
            await lifecycle.__aenter__() if asynchronous else lifecycle.__enter__()

        begun = [f"start {name}" for name in PARTS[: position + 1]]
        undone = [*begun, *(line.replace("start", "stop") for line in reversed(begun))]
        assert undone == log
        Stubborn.gate.set()
        Stubborn.gate_async.set()
        # What started too late stops by itself, a second time for good.
        await eventually_async(lambda undone=undone, log=log: [*undone, f"stop {PARTS[position]}"] == log)


@pytest.mark.parametrize("position", range(12))
async def test_a_stop_that_fails_at_any_position_stops_all_others(position: int) -> None:
    """Whichever part raises, all twelve are stopped in reverse and its error is in the group."""
    for asynchronous in (False, True):
        container = chain()
        lifecycle = Lifecycle(container)
        await lifecycle.__aenter__() if asynchronous else lifecycle.__enter__()
        getattr(container, PARTS[position])().failing["stop"] = OSError("cannot")
        log = container.log()

        with pytest.raises(ExceptionGroup) as caught:
            await lifecycle.__aexit__(None, None, None) if asynchronous else lifecycle.__exit__(None, None, None)

        assert ["cannot"] == [str(error) for error in caught.value.exceptions]
        assert [f"stop {name}" for name in reversed(PARTS)] == log[12:]


@pytest.mark.parametrize("position", range(12))
async def test_a_stop_that_hangs_is_left_behind_at_the_deadline(position: int) -> None:
    """A part that ignores its time limit is named in the group, and all others are stopped."""
    for asynchronous in (False, True):
        Stubborn.gate = threading.Event()
        container = chain(Stubborn)
        lifecycle = Lifecycle(container, stop_timeout=0.05)
        await lifecycle.__aenter__() if asynchronous else lifecycle.__enter__()
        getattr(container, PARTS[position])().failing["hang"] = OSError()
        log = container.log()
        began = time.monotonic()
        with pytest.raises(ExceptionGroup) as caught:
            await lifecycle.__aexit__(None, None, None) if asynchronous else lifecycle.__exit__(None, None, None)
        waited = time.monotonic() - began
        Stubborn.gate.set()

        assert any(isinstance(error, StopTimeoutError) for error in caught.value.exceptions)
        assert PARTS[position] in str(caught.value.exceptions)
        assert waited < 20
        # A thread that was slow to begin is no failure.
        await eventually_async(lambda log=log: set(PARTS) == {each.split()[1] for each in log if "stop" in each})


def test_an_interrupt_does_not_keep_the_rest_up() -> None:
    """A KeyboardInterrupt out of one part's stop is raised when all others are stopped, and a new start works."""
    container: Any = chain()
    lifecycle = Lifecycle(container)
    lifecycle.__enter__()
    container.part_11().failing["stop"] = KeyboardInterrupt()
    log = container.log()
    with pytest.raises(KeyboardInterrupt):
        lifecycle.__exit__(None, None, None)

    assert "stop part_0" == log[-1]
    with lifecycle:
        pass


def test_a_start_that_ends_too_late_is_stopped_by_itself() -> None:
    """A part whose start was given up does not stay up when it comes to its end after all."""
    release = threading.Event()

    class Slow(Ledger):
        def start(self) -> None:
            release.wait(30)
            self._act("start")

    class Container(containers.DeclarativeContainer):
        log = providers.Singleton(list)
        slow = Pooled(Slow, log, "slow")

    container: Any = Container()
    log = container.log()
    with pytest.raises(StartTimeoutError):
        Lifecycle(container, start_timeout=0.05).__enter__()
    release.set()

    eventually(lambda: ["start slow", "stop slow"] == log[-2:])


def test_running_calls_end_before_the_pools_stop() -> None:
    """A call that is in the middle of its work has its pools until it ends, also if it holds no lease."""
    inside, release = threading.Event(), threading.Event()
    results: list[Any] = []

    @inject
    def work(ledger: Ledger = Provide["ledger"]) -> None:
        inside.set()
        release.wait(30)
        results.append(list(ledger.log))

    lifecycle = Lifecycle(LedgerContainer(), modules=[module_with(work)])
    lifecycle.__enter__()
    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(30)
    stopping = threading.Thread(target=lifecycle.__exit__, args=(None, None, None))
    stopping.start()
    release.set()
    thread.join(30)
    stopping.join(30)

    assert [["start ledger"]] == results


async def test_running_coroutines_end_before_the_pools_stop() -> None:
    """So it is with coroutines."""
    release = asyncio.Event()

    @inject
    async def work(first: Connection = Provide["first"], ledger: Ledger = Provide["ledger"]) -> list[str]:
        await release.wait()
        return list(ledger.log)

    lifecycle = Lifecycle(LedgerContainer(), modules=[module_with(work)])
    await lifecycle.__aenter__()
    task = asyncio.create_task(work())
    container: Any = lifecycle.container
    await eventually_async(lambda: container.ledger().leased)
    stopping = asyncio.create_task(lifecycle.__aexit__(None, None, None))
    await asyncio.sleep(0)
    release.set()

    assert ["start ledger", "open ledger"] == await task
    await stopping


class Traffic:
    """A call that runs while its container stops, and what others try meanwhile."""

    def __init__(self) -> None:
        self.inside, self.release = threading.Event(), threading.Event()

        @inject
        def inner(first: Connection = Provide["first"]) -> bool:
            return first.open

        @inject
        def outer(first: Connection = Provide["first"]) -> bool:
            self.inside.set()
            self.release.wait(30)
            return inner()

        @inject
        def items(first: Connection = Provide["first"]) -> Iterator[bool]:
            yield first.open

        self.inner, self.outer, self.items = inner, outer, items
        self.lifecycle = Lifecycle(LedgerContainer(), modules=[module_with(inner, outer, items)])

    def stop(self) -> None:
        self.lifecycle.__exit__(None, None, None)


def test_new_calls_are_refused_while_running_ones_end() -> None:
    """From the beginning of the stop a new call is an error that says so; what a running call calls is served."""
    for _ in range(20):
        traffic, results = Traffic(), list[bool]()
        traffic.lifecycle.__enter__()
        running = threading.Thread(target=lambda t=traffic, r=results: r.append(t.outer()))
        running.start()
        traffic.inside.wait(30)
        stopping = threading.Thread(target=traffic.stop)
        stopping.start()

        def refused(traffic: Traffic = traffic) -> bool:
            with suppress(StoppingError):
                return not traffic.inner()
            return True

        eventually(refused)
        with pytest.raises(StoppingError, match="its container is stopping and takes no new calls"):
            list(traffic.items())
        with message_scope():
            assert traffic.inner()
        traffic.release.set()
        for thread in (running, stopping):
            thread.join(30)

        assert [True] == results
        with pytest.raises(NotWiredError):
            traffic.inner()


async def test_what_a_running_coroutine_awaits_is_served_while_its_container_stops() -> None:
    """A coroutine that runs comes to its end, and a new one is refused."""
    release = asyncio.Event()

    @inject
    async def inner(first: Connection = Provide["first"]) -> bool:
        await asyncio.sleep(0)
        return first.open

    @inject
    async def outer(first: Connection = Provide["first"]) -> bool:
        await release.wait()
        return await inner()

    lifecycle = Lifecycle(LedgerContainer(), modules=[module_with(inner, outer)])
    await lifecycle.__aenter__()
    container: Any = lifecycle.container
    running = asyncio.create_task(outer())
    await eventually_async(lambda: container.ledger().leased)
    stopping = asyncio.create_task(lifecycle.__aexit__(None, None, None))

    async def call_until_the_stop_has_begun() -> None:
        for _ in range(100_000):
            await inner()

    with pytest.raises(StoppingError):
        await call_until_the_stop_has_begun()
    release.set()
    assert await running
    await stopping


def test_a_call_that_comes_too_late_makes_no_new_pool() -> None:
    """While one part is still being stopped, calls reach the pools that are stopped and no new ones."""
    gate, at_it = threading.Event(), threading.Event()
    made: list[Ledger] = []

    class Counted(Ledger):
        def __init__(self, needs: Any) -> None:
            super().__init__(needs=needs)
            made.append(self)

    class Slow(Ledger):
        def stop(self, timeout: float = 10.0) -> None:
            at_it.set()
            gate.wait(30)

    class Container(containers.DeclarativeContainer):
        slow = Pooled(Slow)
        ledger = Pooled(Counted, needs=slow)  # so it is stopped before the slow one
        first: LeaseProvider[Connection] = LeaseProvider(ledger, "lease", None)

    @inject
    def use(first: Connection = Provide["first"]) -> None: ...

    lifecycle = Lifecycle(Container(), modules=[module_with(use)])
    with lifecycle:
        use()
        stopping = threading.Thread(target=lifecycle.__exit__, args=(None, None, None))
        stopping.start()
        at_it.wait(30)
        for _ in range(10):
            with message_scope():
                use()
        gate.set()
        stopping.join(30)

    assert 1 == len(made)


def test_a_stop_after_the_stop_does_nothing() -> None:
    """Stopping twice, or what never started, is no error, in whichever way."""
    container: Any = LedgerContainer()
    lifecycle = Lifecycle(container)
    lifecycle.__exit__(None, None, None)
    with lifecycle:
        log = container.ledger().log
        lifecycle.__exit__(None, None, None)
    asyncio.run(lifecycle.__aexit__(None, None, None))

    assert ["start ledger", "stop ledger"] == log


def test_one_container_runs_once_at_a_time() -> None:
    """A second lifecycle on the same container is refused, and the first one's pools stay up."""
    container: Any = LedgerContainer()
    with Lifecycle(container):
        with pytest.raises(LifecycleError, match="the container runs already"):
            Lifecycle(container).__enter__()
        assert ["start ledger"] == container.ledger().log


def test_a_container_class_is_refused() -> None:
    """A lifecycle is given an instance, and says so."""
    with pytest.raises(LifecycleError, match=r"LedgerContainer is a class; give an instance: LedgerContainer\(\)"):
        Lifecycle(LedgerContainer)  # type: ignore[arg-type]


def test_a_restarted_container_serves_its_apis_with_the_new_pool() -> None:
    """What names an API after a restart does not hold the pool that was stopped."""
    with StubServer() as stub:
        stub.reply("GET", "/x", json=1)
        resources = Resources(apis={"web": {"base_url": stub.base_url}})
        container: Any = AgentContainer(resources=providers.Object(resources))
        for _ in range(2):
            with Lifecycle(container):
                assert 1 == container.apis.web().get("/x").json()


def test_an_override_reaches_functions_that_are_wired_already() -> None:
    """Overriding a named resource of a running container changes what is injected, and back."""

    @inject
    def work(web: Any = Provide["apis.web"]) -> Any:
        return web

    container: Any = AgentContainer(resources=providers.Object(Resources(apis={"web": {"base_url": "http://x"}})))
    with Lifecycle(container, modules=[module_with(work)]):
        fake = Fake()
        with override(container, {"apis.web": fake}):
            assert fake is work()
        assert fake is not work()


def test_another_containers_wiring_comes_back() -> None:
    """What dependency-injector's ``wire`` bound before is bound again when the lifecycle lets go."""

    @inject
    def work(greeting: str = Provide["greeting"]) -> str:
        return greeting

    module = module_with(work)
    before = LedgerContainer()
    before.wire(modules=[module])
    other: Any = LedgerContainer()
    with other.greeting.override(providers.Object("other")), Lifecycle(other, modules=[module]):
        assert "other" == work()
    assert "hello" == work()
    before.unwire()


def test_a_failed_wiring_can_be_mended() -> None:
    """After any error while wiring, a corrected container serves the same function."""

    @inject
    def work(greeting: str = Provide["greeting"], name: str = Provide["name"]) -> str:
        return f"{greeting} {name}"

    module = module_with(work)
    with pytest.raises(UnresolvedMarkersError):
        Lifecycle(LedgerContainer(), modules=[module]).__enter__()

    class Complete(LedgerContainer):
        name = providers.Object("world")

    with Lifecycle(Complete(), modules=[module]):
        assert "hello world" == work()


def test_modules_imported_later_are_served_by_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that is decorated while its package is served receives its leases at the first call."""
    import sys

    package = module_with()
    monkeypatch.setitem(sys.modules, package.__name__, package)
    with Lifecycle(LedgerContainer(), packages=[package.__name__]):

        @inject
        def late(first: Connection = Provide["first"]) -> bool:
            return first.open

        late.__module__ = late.__wrapped__.__module__ = f"{package.__name__}.late"  # type: ignore[attr-defined]
        assert late()
    with pytest.raises(NotWiredError):
        late()


def test_a_misspelt_method_of_a_pool_stops_the_start() -> None:
    """A lease that no method gives is named with the nearest one."""

    class Container(LedgerContainer):
        misspelt: LeaseProvider[Any] = LeaseProvider(LedgerContainer.ledger, "leese", None)

    with pytest.raises(UnresolvedMarkersError, match="misspelt: Ledger has no method 'leese'; did you mean 'lease'"):
        Lifecycle(Container()).__enter__()


def test_a_decorator_between_inject_and_a_lazy_function_is_refused() -> None:
    """What would use its connection after it was given back is refused at decoration."""
    with pytest.raises(TypeError, match="put @inject below it, directly above the function"):

        @inject
        @contextmanager
        def opened(first: Connection = Provide["first"]) -> Any:
            yield first


def test_failed_calls_keep_nothing_alive() -> None:
    """What a failing call held is gone when its error is, without help from the garbage collector."""

    class Thing: ...

    kept: list[weakref.ref[Thing]] = []

    @contextmanager
    def lend() -> Iterator[str]:
        yield "lent"

    class Container(LedgerContainer):  # the ledger itself would keep what ended each of its leases
        lent = providers.Factory(Lease, providers.Object(lend))

    @inject
    def work(lent: str = Provide["lent"], greeting: str = Provide["greeting"]) -> None:
        thing = Thing()
        kept.append(weakref.ref(thing))
        raise ZeroDivisionError

    with Lifecycle(Container(), modules=[module_with(work)]):
        gc.disable()
        try:
            for _ in range(20):
                with suppress(ZeroDivisionError):
                    work()
            alive = sum(reference() is not None for reference in kept)
        finally:
            gc.enable()

    assert 0 == alive


async def test_asynchronous_generators_receive_what_is_sent_and_thrown() -> None:
    """``asend`` and ``athrow`` reach the body of a decorated asynchronous generator."""

    @inject
    async def talk(first: Connection = Provide["first"]) -> Any:
        heard = yield first.open
        try:
            yield heard
        except KeyError:
            yield "caught"

    container: Any = LedgerContainer()
    async with Lifecycle(container, modules=[module_with(talk)]):
        items = talk()
        assert await items.asend(None)
        assert "hello" == await items.asend("hello")
        assert "caught" == await items.athrow(KeyError())
        with pytest.raises(StopAsyncIteration):
            await items.asend(None)
        assert [] == container.ledger().leased


def test_a_resources_repr_shows_names_only() -> None:
    """An address may carry a password, so the resources show which names they have."""
    resources = Resources(databases={"main": {"url": "postgresql://u:canary@h/d"}})

    assert "canary" not in repr(resources)
    assert "main" in repr(resources)
