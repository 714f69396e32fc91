"""What dependency-injector leaves to chance when a container starts and stops, each case again and again."""

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from dependency_injector import containers, providers

from app.containers import Lifecycle, Pooled, StartTimeoutError
from tests.support.ledger import Ledger
from tests.support.threads import together

ROUNDS = 50


class Holder:
    """Stands between a pool and what needs it."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool


def between(kind: str, pool: Any) -> Any:
    """Return what a pool that needs ``pool`` is given, through one kind of provider."""
    if kind == "a singleton":
        return providers.Singleton(Holder, pool)
    if kind == "an attribute":
        return providers.Singleton(Holder, pool).provided.pool.numbers
    return providers.Factory(Holder, pool)


@pytest.mark.parametrize("kind", ["a singleton", "an attribute", "a factory"])
async def test_the_order_is_right_every_time(kind: str) -> None:
    """A pool starts after the one that it needs through another provider, and stops before it."""
    for number in range(ROUNDS):
        container: Any = containers.DynamicContainer()
        container.log = providers.Singleton(list)
        base = Pooled(Ledger, container.log, "base")
        top = Pooled(Ledger, container.log, "top", needs=between(kind, base))
        # The order of declaration must not matter.
        for name, pool in [("base", base), ("top", top)][:: 1 if number % 2 else -1]:
            setattr(container, name, pool)
        if number % 3:
            with Lifecycle(container):
                pass
        else:
            async with Lifecycle(container):
                pass

        assert ["start base", "start top", "stop top", "stop base"] == container.log()


async def test_asynchronous_resources_behind_an_asynchronous_factory_stop_in_order() -> None:
    """A resource that is made from another one, through a factory that is asynchronous for it, ends first."""
    for _ in range(ROUNDS):
        log: list[str] = []

        async def resource(name: str, needs: Any = None, log: list[str] = log) -> AsyncIterator[str]:
            log.append(f"init {name}")
            yield name
            log.append(f"shutdown {name}")

        container: Any = containers.DynamicContainer()
        container.base = providers.Resource(resource, "base")
        container.top = providers.Resource(resource, "top", providers.Factory(Holder, container.base))
        async with Lifecycle(container):
            pass

        assert ["init base", "init top", "shutdown top", "shutdown base"] == log


async def test_a_container_without_anything_asynchronous_starts_in_a_loop() -> None:
    """``async with`` serves a container of synchronous resources only, and an empty one."""
    log: list[str] = []

    def resource() -> Iterator[str]:
        log.append("init")
        yield "value"
        log.append("shutdown")

    class Synchronous(containers.DeclarativeContainer):
        resource_of_theirs = providers.Resource(resource)

    async with Lifecycle(Synchronous()), Lifecycle(containers.DynamicContainer()):
        assert ["init"] == log
    assert ["init", "shutdown"] == log


async def test_siblings_of_a_part_that_fails_do_not_go_on() -> None:
    """When one of several independent parts fails, the others have ended by the time that the error is raised."""
    for _ in range(ROUNDS):
        container: Any = containers.DynamicContainer()
        container.log = providers.Singleton(list)
        for name in ("one", "failing", "other"):
            setattr(container, name, Pooled(Ledger, container.log, name))
        container.failing().failing["start"] = ConnectionError("down")
        with pytest.raises(ConnectionError):
            await Lifecycle(container).__aenter__()

        log = container.log()
        assert {"start one", "start failing", "start other"} == set(log[:3])
        assert {"stop one", "stop failing", "stop other"} == set(log[3:])


def test_the_first_use_from_twenty_threads_makes_one_pool() -> None:
    """However many come first at once, there is one pool."""
    for _ in range(ROUNDS):
        pool = Pooled(Ledger)
        seen = together(pool, 20)
        assert 20 == len(seen)
        assert 1 == len({id(each) for each in seen})


def test_pools_that_are_slow_to_make_are_made_at_the_same_time() -> None:
    """Two independent pools that each wait for the other one to be made do not keep each other out."""
    meeting = threading.Barrier(2)

    class Slow(Ledger):
        def __init__(self) -> None:
            meeting.wait(30)
            super().__init__()

    class Container(containers.DeclarativeContainer):
        one = Pooled(Slow)
        other = Pooled(Slow)

    with Lifecycle(Container(), start_timeout=40) as lifecycle:
        assert {"one", "other"} == set(lifecycle.report)


def test_independent_parts_start_at_the_same_time_each_within_its_limit() -> None:
    """Parts of one wave wait for each other; of two that hang both are named."""
    meeting, hold = threading.Barrier(3), threading.Event()

    class Meeting(Ledger):
        def start(self) -> None:
            meeting.wait(30)

    class Hanging(Ledger):
        def start(self) -> None:
            hold.wait(30)

    class Container(containers.DeclarativeContainer):
        one = Pooled(Meeting)
        two = Pooled(Meeting)
        three = Pooled(Meeting)

    class Stuck(containers.DeclarativeContainer):
        one = Pooled(Hanging)
        two = Pooled(Hanging)

    with Lifecycle(Container()):
        pass
    with pytest.raises(StartTimeoutError) as caught:
        Lifecycle(Stuck(), start_timeout=0.05).__enter__()
    hold.set()

    assert "one did not start within 0.05 s" in str(caught.value)
    assert any("two did not start within 0.05 s" in note for note in caught.value.__notes__)
