"""Who holds a lease: where it was checked out, and what called that."""

import asyncio
import contextlib
import threading

import pytest

from app.pools.core.bucket import Bucket, Limits


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
