"""Ctrl-C at any instruction: a KeyboardInterrupt costs at most the connection that was in its way."""

import contextlib
import gc
import random
import signal
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.pools.core.bucket import Bucket, Limits
from app.pools.core.budget import Budget
from app.pools.errors import PoolTimeout

INTERRUPTS = 1500


class Connection:
    """Something that is open until it is closed."""

    opened = 0
    closed = 0

    def __init__(self):
        Connection.opened += 1

    def close(self):
        Connection.closed += 1

    def __del__(self):
        Connection.opened -= 1


@pytest.fixture
def interrupted():
    """Return a function that calls another one until an interrupt ends it, at a random moment."""
    armed = []

    def interrupt(*_):
        if armed:
            armed.clear()
            raise KeyboardInterrupt

    def until_interrupted(work):
        armed.append(True)
        with contextlib.suppress(KeyboardInterrupt):
            # Again and again, for CPython 3.11 can miss one that comes as it handles another event.
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 3e-4), 0.01)
            while armed:  # an interrupt within a finaliser ends nothing
                work()

    before = signal.signal(signal.SIGALRM, interrupt)
    yield until_interrupted
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    # A lease that an interrupt ended was never given back. One within a finaliser is only reported; pytest would keep
    # the report, and what it mentions, until the end of the test.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


def use(bucket):
    entry = bucket.checkout(timeout=0.001)
    if random.random() < 0.3:
        bucket.discard(entry)
    else:
        bucket.give_back(entry)


@pytest.mark.parametrize("competing", [False, True], ids=["alone", "beside a thread"])
def test_no_place_is_lost_or_won_by_interrupts(interrupted, competing):
    """After a thousand interrupts in checkouts and returns, the cap and the budget are free to the last place."""
    budget = Budget(3)
    one, two = (
        Bucket(
            "test",
            "key",
            Limits(2, idle_timeout=60),
            create=Connection,
            destroy=Connection.close,
            budget=budget,
        )
        for _ in range(2)
    )
    stop = []

    def compete():
        while not stop:
            with contextlib.suppress(PoolTimeout):
                use(random.choice((one, two)))

    def work():
        with contextlib.suppress(PoolTimeout):
            use(random.choice((one, two)))

    with ThreadPoolExecutor(1) as threads:
        beside = threads.submit(compete) if competing else None
        try:
            for _ in range(INTERRUPTS):
                interrupted(work)
        finally:
            stop.append(True)
        if beside is not None:
            beside.result(20)
    gc.collect()
    for bucket in (one, two):
        bucket.sweep()
        assert 0 == bucket.stats()["active"]
        assert bucket.stats()["total"] == bucket.stats()["idle"] <= 2
    held = [one.checkout(timeout=0), one.checkout(timeout=0), two.checkout(timeout=0)]
    for full in (one, two):
        with pytest.raises(PoolTimeout):
            full.checkout(timeout=0)
    for bucket, entry in zip((one, one, two), held, strict=True):
        bucket.give_back(entry)
    one.clear()
    two.clear()
    assert budget.left == 3
