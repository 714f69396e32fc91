"""Ctrl-C at any instruction: a KeyboardInterrupt costs at most the connection that was in its way."""

import contextlib
import gc
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.pools.core.bucket import Bucket, Limits
from app.pools.core.budget import Budget
from app.pools.errors import PoolTimeout
from tests.support.interrupts import interrupt

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


def use(bucket):
    entry = bucket.checkout(timeout=0.001)
    if random.random() < 0.3:
        bucket.discard(entry)
    else:
        bucket.give_back(entry)


@pytest.mark.filterwarnings("ignore:a lease of .* was never ended:ResourceWarning")
@pytest.mark.parametrize("competing", [False, True], ids=["alone", "beside a thread"])
def test_no_place_is_lost_or_won_by_interrupts(competing):
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
            interrupt(work, INTERRUPTS)
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
