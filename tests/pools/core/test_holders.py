"""Who holds a lease: where it was checked out, and what called that."""

import asyncio
import contextlib
import threading

import pytest

from app.pools.core.bucket import Bucket, Limits
from app.pools.errors import PoolTimeout
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.waiting import eventually_async


@contextlib.contextmanager
def leased(bucket):
    entry = bucket.checkout()
    yield entry
    bucket.give_back(entry)


def bucket():
    return Bucket("test", "key", Limits(2), create=object, destroy=lambda _: None)


def test_a_holder_is_told_with_those_who_called_it():
    """While the code that checked out still runs, in another thread as well, its callers are told too."""
    ready, end = threading.Event(), threading.Event()
    entries = []

    def outer():
        middle()

    def middle():
        inner()

    def inner():
        entries.append(connections.checkout())
        ready.set()
        end.wait(20)

    connections = bucket()
    thread = threading.Thread(target=outer)
    thread.start()
    assert ready.wait(20)
    told = entries[0].held()
    end.set()
    thread.join(20)
    assert told.index("in inner") < told.index("in middle") < told.index("in outer")
    assert "in inner" in entries[0].held()
    connections.give_back(entries[0])


def test_a_lease_that_went_elsewhere_is_told_by_its_checkout():
    """When the code that checked out has ended, its own line is what is left to tell."""

    def lend(connections):
        return connections.checkout()

    connections = bucket()
    entry = lend(connections)
    assert "in lend" in entry.held()
    connections.give_back(entry)


def test_a_holder_behind_a_context_manager_of_the_callers_is_told_with_who_entered_it():
    """A generator is on no stack while it waits in its `with`; who ran it until then holds the lease."""

    @contextlib.contextmanager
    def wrapper(connections):
        with leased(connections) as entry:
            yield entry

    def holder(connections):
        with wrapper(connections) as entry:
            return entry.held()

    told = holder(bucket())
    assert told.index("in leased") < told.index("in wrapper") < told.index("in holder")
    assert told.index("in holder") < told.index("in test_a_holder_behind")


async def test_a_task_behind_a_context_manager_of_its_own_is_told_as_the_holder():
    """Likewise for a synchronous lease in an asynchronous generator."""

    @contextlib.asynccontextmanager
    async def wrapper(connections):
        entry = connections.checkout()
        yield entry
        connections.give_back(entry)

    async def holder(connections):
        async with wrapper(connections) as entry:
            return entry.held()

    told = await holder(bucket())
    assert told.index("in wrapper") < told.index("in holder")


def test_a_request_socket_behind_a_context_manager_is_told_with_who_entered_it():
    """A lease of a REQ, which looks at the stack by itself, names the same."""
    config = SocketConfig(SocketType.REQ, "inproc://nobody", max_connections=1)

    @contextlib.contextmanager
    def wrapper(pool):
        with pool.socket(config) as socket:
            yield socket

    def holder(pool):
        with wrapper(pool), pytest.raises(PoolTimeout, match=r"in wrapper <- .* in holder <- "):
            pool.socket(config, timeout=0).__enter__()

    with ZMQPool() as pool:
        holder(pool)


def test_who_calls_a_helper_again_is_not_taken_for_the_holder():
    """A helper that leased and returned, and runs again for another, tells its own line and nobody who called it."""
    connections, entries = bucket(), []

    def helper(take):
        if not take:
            return entries[0].held()
        entries.append(connections.checkout())
        return ""

    def innocent():
        return helper(take=False)

    helper(take=True)
    told = innocent()
    assert "in helper" in told
    assert "<-" not in told
    connections.give_back(entries[0])


def test_of_a_function_that_runs_twice_nobody_knows_who_called_it():
    """Of two calls of one function on the stack either may be the holder's, so neither's callers are told."""
    connections = bucket()

    def again(depth):
        with leased(connections) as entry:
            return again(depth - 1) if depth else entry.held()

    assert "in test_of_a_function" in again(0)
    assert again(1).endswith(" in again")
    assert 1 == again(1).count(" in again")


async def test_another_tasks_call_is_not_taken_for_the_holders():
    """A coroutine that holds a lease while it waits is not told with who awaits the same coroutine meanwhile."""
    connections, entries, may_end = bucket(), [], asyncio.Event()

    async def work(leases):
        if leases:
            entries.append(connections.checkout())
            await may_end.wait()
            connections.give_back(entries[0])
        return entries[0].held()

    async def innocent():
        return await work(leases=False)

    holding = asyncio.create_task(work(leases=True))
    await eventually_async(lambda: entries)
    told = await innocent()
    assert "in work" in told
    assert "innocent" not in told
    may_end.set()
    await holding


def test_an_exit_stack_is_not_taken_for_the_holder():
    """Who leases through an ExitStack is told, and not the standard library."""
    connections = bucket()

    def hold(stack):
        return stack.enter_context(leased(connections))

    with contextlib.ExitStack() as stack:
        told = hold(stack).held()
    assert "contextlib" not in told
    assert "test_holders.py" in told


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, pytest.param("uvloop", id="uvloop")])
def test_a_task_of_nothing_but_a_checkout_is_told_by_its_name(new_loop):
    """Where the task runs no code of its maker's, its name and its coroutine stand for that, in any event loop."""
    make = pytest.importorskip(new_loop).new_event_loop if isinstance(new_loop, str) else new_loop
    connections = bucket()

    async def main():
        entry = await asyncio.create_task(connections.checkout_async(), name="reads the books")
        told = entry.held()
        connections.give_back(entry)
        return told

    with asyncio.Runner(loop_factory=make) as runner:
        assert "Bucket.checkout_async in the task 'reads the books'" in runner.run(main())


async def test_a_callback_of_the_event_loop_is_told_by_its_frames():
    """What checks out in no task has no name: what is on the stack is told."""
    connections = bucket()
    entries = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: entries.set_result(connections.checkout()))
    entry = await entries
    assert "<lambda>" in entry.held()
    connections.give_back(entry)
