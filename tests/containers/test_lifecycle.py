"""Starting and stopping a container."""

import asyncio
import itertools
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from dependency_injector import containers, providers

from app.containers import (
    AgentContainer,
    CycleError,
    Lifecycle,
    LifecycleError,
    Pooled,
    Provide,
    Resources,
    StartTimeoutError,
    UnresolvedMarkersError,
    inject,
)
from tests.support.ledger import Connection, Ledger, LedgerContainer
from tests.support.modules import module_with

NAMES = ("base", "left", "right", "top")


class Diamond(containers.DeclarativeContainer):
    """A pool that others need, two that need it, and one that needs both, through each kind of provider."""

    log = providers.Singleton(list)
    base = Pooled(Ledger, log, "base")
    handle = providers.Factory(object)
    left = Pooled(Ledger, log, "left", needs=base.provided.lease)
    right = Pooled(Ledger, log, "right", needs=providers.Factory(dict, base=base))
    top = Pooled(Ledger, log, "top", needs=providers.List(left, right))


@inject
def use(first: Connection = Provide["first"]) -> bool:
    return first.open


async def enter(lifecycle: Lifecycle, *, asynchronous: bool) -> None:
    if asynchronous:
        await lifecycle.__aenter__()
    else:
        lifecycle.__enter__()


def test_parts_start_after_what_they_need_and_stop_in_reverse() -> None:
    """The order follows the graph through attributes, factories and lists; the stop mirrors the start."""
    container: Any = Diamond()
    with Lifecycle(container) as lifecycle:
        started = list(container.log())
        assert set(NAMES) == set(lifecycle.report)
    log = container.log()

    assert started[0] == "start base"
    assert started[-1] == "start top"
    assert {"start left", "start right"} == set(started[1:3])
    assert log[4] == "stop top"
    assert log[-1] == "stop base"


async def test_the_order_is_the_same_with_asyncio() -> None:
    """``async with`` starts and stops in the same order."""
    container: Any = Diamond()
    async with Lifecycle(container):
        assert [container.log()[0], container.log()[-1]] == ["start base", "start top"]

    assert [container.log()[4], container.log()[-1]] == ["stop top", "stop base"]


@pytest.mark.parametrize("position", range(len(NAMES)))
async def test_a_failing_start_rolls_back_what_had_started(position: int) -> None:
    """Whichever part fails, it and all that had started are stopped in reverse, and its error is raised."""
    for asynchronous in (False, True):
        container: Any = Diamond()
        name = NAMES[position]
        getattr(container, name)().failing["start"] = ConnectionError(f"{name} is down")

        with pytest.raises(ConnectionError, match=f"{name} is down"):
            await enter(Lifecycle(container), asynchronous=asynchronous)
        log = container.log()
        begun = [line.split()[1] for line in log if line.startswith("start")]
        ended = [line.split()[1] for line in log if line.startswith("stop")]

        assert name in begun
        assert set(begun) == set(ended)
        assert ended[-1] == "base"


def test_errors_of_the_rollback_are_attached_to_the_first_error() -> None:
    """The error that stopped the start is raised; what failed while undoing it is in its notes."""
    container: Any = Diamond()
    container.top().failing["start"] = ConnectionError("top is down")
    container.base().failing["stop"] = OSError("base cannot close")

    with pytest.raises(ConnectionError) as caught, Lifecycle(container):
        pass

    assert any("base cannot close" in note for note in caught.value.__notes__)


def test_a_part_that_fails_to_stop_does_not_keep_the_others_up() -> None:
    """Every part is stopped, and each error is in one group."""
    container: Any = Diamond()
    lifecycle = Lifecycle(container)
    lifecycle.__enter__()
    container.top().failing["stop"] = OSError("top")
    container.base().failing["stop"] = OSError("base")

    with pytest.raises(ExceptionGroup) as caught:
        lifecycle.__exit__(None, None, None)

    assert [str(error) for error in caught.value.exceptions] == ["top", "base"]
    assert sum(line.startswith("stop") for line in container.log()) == 4


def test_a_part_that_hangs_is_given_up_after_its_time_limit() -> None:
    """A start that takes too long is an error that names the part, and the rest is rolled back."""
    hold = threading.Event()

    class Hanging(Ledger):
        def start(self) -> None:
            hold.wait(30)

    class Container(containers.DeclarativeContainer):
        log = providers.Singleton(list)
        quick = Pooled(Ledger, log, "quick")
        slow = Pooled(Hanging, log, "slow", needs=quick)

    container: Any = Container()
    with (
        pytest.raises(StartTimeoutError, match=r"slow did not start within 0\.1 s"),
        Lifecycle(container, start_timeout=0.1),
    ):
        pass
    hold.set()

    assert container.log()[-1] == "stop quick"


async def test_a_cancelled_start_still_rolls_back() -> None:
    """Cancelling the start stops what had started before the cancellation is raised."""

    class Hanging(Ledger):
        async def start_async(self) -> None:
            self._act("start")
            await asyncio.Event().wait()

    class Container(containers.DeclarativeContainer):
        log = providers.Singleton(list)
        quick = Pooled(Ledger, log, "quick")
        slow = Pooled(Hanging, log, "slow", needs=quick)

    container: Any = Container()
    task = asyncio.create_task(Lifecycle(container).__aenter__())
    while "start slow" not in container.log():
        await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert container.log()[-2:] == ["stop slow", "stop quick"]


def test_a_cycle_is_drawn_as_a_path() -> None:
    """Providers that need each other are refused before anything starts, and the circle is named."""

    class Circle(containers.DeclarativeContainer):
        log = providers.Singleton(list)
        first = Pooled(Ledger, log, "first")
        second = Pooled(Ledger, log, "second", needs=first)

    container: Any = Circle()
    container.first.add_kwargs(needs=container.second)

    with pytest.raises(CycleError, match="first -> second -> first"), Lifecycle(container):
        pass
    assert container.log() == []


def test_a_misspelt_marker_stops_the_start_and_names_the_nearest() -> None:
    """Module, function, parameter and the nearest name are in the error, and nothing was started."""

    @inject
    def handle(connection: Connection = Provide["frist"]) -> None: ...

    container: Any = LedgerContainer()
    with (
        pytest.raises(UnresolvedMarkersError) as caught,
        Lifecycle(container, modules=[module_with(handle)]),
    ):
        pass

    assert "module_of_a_user_" in str(caught.value)
    assert "parameter 'connection': the container has no 'frist'; did you mean 'first'?" in str(caught.value)
    assert container.ledger().log == []


@pytest.mark.parametrize(
    ("marker", "complaint"),
    [
        ("databases.libary", "no [databases.libary] is configured; did you mean 'library'?"),
        ("databases.library.sesion", "did you mean 'databases.library.session'?"),
        ("database.library", "did you mean 'databases.library'?"),
        ("sql_pol", "did you mean 'sql_pool'?"),
        (
            "apis.llm",
            "no [apis.llm] is configured; add [apis.llm] with a `base_url` to poolwire.toml, or give it to Re",
        ),
        ("sockets.feed", "add [sockets.feed] with a `type` and an `endpoint` to"),
        ("databases", "'databases' are many; name one: 'databases.library'"),
    ],
)
def test_a_wrong_name_of_a_resource_says_what_to_do(marker: str, complaint: str) -> None:
    """A misspelt resource, a missing table and a whole group each have their own cure."""

    @inject
    def handle(wrong: object = Provide[marker]) -> None: ...

    resources = Resources(databases={"library": {"url": "sqlite:///x.db"}})
    with pytest.raises(UnresolvedMarkersError) as caught:
        Lifecycle(AgentContainer(resources=providers.Object(resources)), modules=[module_with(handle)]).__enter__()
    assert complaint in str(caught.value)
    assert "handle, parameter 'wrong': " in str(caught.value)


def test_what_is_no_container_is_refused() -> None:
    """A lifecycle is given a container, and says so."""
    with pytest.raises(LifecycleError, match="None is no container; give an instance of AgentContainer or of your own"):
        Lifecycle(None)  # type: ignore[arg-type]


class OnlySync:
    """A pool of a user's own that knows nothing of asyncio."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def start(self) -> None:
        self.log.append(f"start in {threading.current_thread().name}")

    def stop(self, timeout: float = 10.0) -> None:
        self.log.append(f"stop in {threading.current_thread().name}")


class OnlyAsync:
    """A pool of a user's own that asyncio alone can start."""

    async def start_async(self) -> None: ...
    async def stop_async(self, timeout: float = 10.0) -> None: ...


async def test_a_pool_without_an_asynchronous_side_does_not_block_the_loop() -> None:
    """In ``async with`` it is started and stopped in a thread."""

    class Container(containers.DeclarativeContainer):
        log = providers.Singleton(list)
        pool = Pooled(OnlySync, log)

    container: Any = Container()
    async with Lifecycle(container):
        pass
    assert ["start in poolwire-start", "stop in poolwire-stop"] == container.log()


async def test_a_pool_that_only_asyncio_starts_says_so() -> None:
    """In ``with`` it is refused with the cure."""

    class Container(containers.DeclarativeContainer):
        pool = Pooled(OnlyAsync)

    with pytest.raises(LifecycleError, match=r"pool starts asynchronously; use `async with Lifecycle\(...\)`"):
        Lifecycle(Container()).__enter__()
    async with Lifecycle(Container()) as lifecycle:
        assert {"pool"} == set(lifecycle.report)


def test_what_cannot_be_started_is_no_pool() -> None:
    """A ``Pooled`` class without the methods of a pool is named before anything starts."""

    class Container(containers.DeclarativeContainer):
        thing = Pooled(dict)

    with pytest.raises(UnresolvedMarkersError, match=r"thing: dict has no start\(\); a Pooled has start\(\) and stop"):
        Lifecycle(Container()).__enter__()


def test_an_error_of_the_start_names_its_part() -> None:
    """Which part raised is in the error's notes."""
    container: Any = Diamond()
    container.left().failing["start"] = ConnectionError("down")
    with pytest.raises(ConnectionError) as caught, Lifecycle(container):
        pass
    assert "raised while left was started" in caught.value.__notes__


def test_a_forgotten_decorator_stops_the_start() -> None:
    """A function that has a marker and lacks ``@inject`` is named before anything starts."""

    def handle(connection: Connection = Provide["first"]) -> None: ...

    with (
        pytest.raises(UnresolvedMarkersError, match=r"handle has markers but no decorator; add @inject"),
        Lifecycle(LedgerContainer(), modules=[module_with(handle)]),
    ):
        pass


def test_functions_are_wired_inside_the_block_only() -> None:
    """Before and after the block a call says that nothing is wired."""
    container: Any = LedgerContainer()
    with Lifecycle(container, modules=[sys.modules[__name__]]):
        assert use()

    with pytest.raises(RuntimeError, match="nothing was injected"):
        use()


def test_a_container_can_be_started_again_with_new_pools() -> None:
    """After a stop the same container starts with fresh pools."""
    container: Any = LedgerContainer()
    lifecycle = Lifecycle(container)
    with lifecycle:
        before = container.ledger()
    with lifecycle:
        after = container.ledger()

    assert before is not after
    assert ["start ledger", "stop ledger"] == before.log == after.log


def test_a_second_start_is_refused_and_leaves_the_first_alone() -> None:
    """Entering a lifecycle that runs is an error, and the container keeps running."""
    container: Any = LedgerContainer()
    lifecycle = Lifecycle(container)
    with lifecycle:
        with pytest.raises(LifecycleError, match="runs already"), lifecycle:
            pass
        assert container.ledger().log == ["start ledger"]


def test_stopping_in_another_event_loop_is_refused() -> None:
    """A container started in one loop is not stopped in another: its connections belong to the first."""
    container: Any = LedgerContainer()
    lifecycle = Lifecycle(container)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(lifecycle.__aenter__())

    with pytest.raises(LifecycleError, match="another event loop"):
        asyncio.run(lifecycle.__aexit__(None, None, None))
    with pytest.raises(LifecycleError, match="stopped with it too"):
        lifecycle.__exit__(None, None, None)

    loop.close()  # now nobody else can stop it
    pool = container.ledger()
    asyncio.run(lifecycle.__aexit__(None, None, None))
    assert ["start ledger", "stop ledger"] == pool.log


def test_resources_of_dependency_injector_join_the_order() -> None:
    """A ``Resource`` is initialised after what it needs and shut down before it."""
    log: list[str] = []

    def resource(pool: Ledger) -> Iterator[str]:
        log.append(f"init after {pool.log[-1]}")
        yield "value"
        log.append(f"shutdown after {pool.log[-1]}")

    class Container(containers.DeclarativeContainer):
        pool = Pooled(Ledger)
        resource_of_pool = providers.Resource(resource, pool)

    with Lifecycle(Container()):
        pass

    assert log == ["init after start ledger", "shutdown after start ledger"]


async def test_asynchronous_resources_join_the_order() -> None:
    """An asynchronous ``Resource`` is awaited at the start and at the stop."""
    log: list[str] = []

    async def resource() -> AsyncIterator[str]:
        log.append("init")
        yield "value"
        log.append("shutdown")

    class Container(containers.DeclarativeContainer):
        slow = providers.Resource(resource)

    async with Lifecycle(Container()):
        assert log == ["init"]
    assert log == ["init", "shutdown"]


def test_an_overridden_pool_is_not_started() -> None:
    """What a test puts in the place of a pool is used as it is."""
    container: Any = LedgerContainer()
    fake = Ledger()
    with container.ledger.override(providers.Object(fake)), Lifecycle(container):
        assert fake is container.ledger()

    assert fake.log == []


def test_many_lifecycles_at_once_do_not_disturb_each_other() -> None:
    """Containers in several threads start and stop on their own."""
    failures = []

    def cycle() -> None:
        try:
            for _ in range(20):
                container: Any = Diamond()
                with Lifecycle(container):
                    pass
                assert len(container.log()) == 8
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            failures.append(error)

    threads = [threading.Thread(target=cycle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert list(itertools.chain(failures)) == []
