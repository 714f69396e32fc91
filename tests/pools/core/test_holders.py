"""Who holds a lease: where it was checked out, and what called that."""

import contextlib
import threading

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
