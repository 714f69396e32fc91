"""The bucket: one owner per connection, a cap that holds, and nobody left waiting."""

import asyncio
import contextlib
import gc
import itertools
import logging
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest

from app.pools.core.bucket import Bucket, Limits
from app.pools.core.budget import Budget
from app.pools.errors import PoolClosed, PoolTimeout
from tests.support.waiting import eventually, eventually_async


class Maker:
    """Makes numbered connections and remembers which are open."""

    def __init__(self):
        self.numbers = itertools.count()
        self.open = set()
        self.most = 0

    def create(self):
        number = next(self.numbers)
        self.open.add(number)
        self.most = max(self.most, len(self.open))
        return number

    def destroy(self, number):
        self.open.remove(number)

    def bucket(self, capacity=2, budget=None, usable=None, **limits):
        return Bucket(
            "test",
            "key",
            Limits(capacity=capacity, **limits),
            create=self.create,
            destroy=self.destroy,
            budget=budget,
            usable=usable,
        )


@pytest.fixture
def maker():
    return Maker()


def test_the_warmest_is_used_first(maker):
    """Idle connections form a stack, so that the coldest can expire."""
    bucket = maker.bucket()
    first, second = bucket.checkout(), bucket.checkout()
    bucket.give_back(first)
    bucket.give_back(second)
    assert second is bucket.checkout()
    assert first is bucket.checkout()


def test_a_discarded_connection_is_closed_and_its_place_is_free(maker):
    """After a discard the next caller gets a new connection."""
    bucket = maker.bucket(capacity=1)
    bucket.discard(bucket.checkout())
    entry = bucket.checkout(timeout=0)
    assert 1 == entry.resource
    assert {1} == maker.open
    bucket.give_back(entry)


def hold_for_a_while(bucket):
    """Check out, in a function of this name."""
    return bucket.checkout()


def check_every_fact(refused, bucket):
    """Assert what a timeout says of a bucket of two that are out, for which one more caller waits."""
    facts = (refused.pool, refused.key, refused.capacity, refused.in_use, refused.waiters)
    assert ("test", "key", 2, 2, 1) == facts
    assert 0.05 <= refused.waited < 30
    assert "in hold_for_a_while" in refused.longest_holder
    assert (None, "TEST_POOL_MAX_CONNECTIONS") == (refused.total, refused.setting)
    told = str(refused)
    assert f"no test connection for key within {refused.waited:.2f} s: 2 of 2 in use, 1 waiting" in told
    assert f"held longest: {refused.longest_holder}" in told
    assert "raise TEST_POOL_MAX_CONNECTIONS" in told
    assert 1 == bucket.stats()["timeouts"]
    assert refused.__context__ is None  # its traceback begins with itself


def test_a_checkout_gives_up_at_its_deadline_and_says_why(maker):
    """The error has the pool, the key, the cap, those in use and waiting, the wait, and the longest holder's stack."""
    bucket = maker.bucket(capacity=2)
    longest, other = hold_for_a_while(bucket), bucket.checkout()
    with ThreadPoolExecutor(1) as threads:
        patient = threads.submit(bucket.checkout, 30)
        eventually(lambda: bucket.stats()["waiting"] == 1)
        with pytest.raises(PoolTimeout) as refused:
            bucket.checkout(timeout=0.05)
        check_every_fact(refused.value, bucket)
        bucket.give_back(longest)
        bucket.give_back(patient.result(30))
    bucket.give_back(other)


async def test_a_checkout_in_a_task_gives_up_at_its_deadline_and_says_why(maker):
    """A task's error has the same facts as a thread's, whoever holds: a task, or a thread."""
    bucket = maker.bucket(capacity=2)
    longest = await asyncio.to_thread(hold_for_a_while, bucket)
    other = await bucket.checkout_async()
    patient = asyncio.create_task(bucket.checkout_async(30))
    await eventually_async(lambda: bucket.stats()["waiting"] == 1)
    with pytest.raises(PoolTimeout) as refused:
        await bucket.checkout_async(timeout=0.05)
    check_every_fact(refused.value, bucket)
    bucket.give_back(longest)
    bucket.give_back(await asyncio.wait_for(patient, 30))
    bucket.give_back(other)


def test_the_longest_holders_stack_is_told_as_long_as_it_runs(maker):
    """A timeout names the line of the longest holder's checkout, and those who called it."""
    bucket = maker.bucket(capacity=2)
    held, done = threading.Event(), threading.Event()

    def serve():
        handle()

    def handle():
        entry = bucket.checkout()
        held.set()
        done.wait(30)
        bucket.give_back(entry)

    with ThreadPoolExecutor(1) as threads:
        serving = threads.submit(serve)
        assert held.wait(30)
        younger = bucket.checkout()
        with pytest.raises(PoolTimeout, match=r"test_bucket\.py:\d+ in handle <- test_bucket\.py:\d+ in serve <- "):
            bucket.checkout(timeout=0)
        done.set()
        serving.result(30)
    bucket.give_back(younger)


def test_a_returned_connection_goes_to_the_one_who_waited_longest(maker):
    """Waiters are served in the order in which they came."""
    bucket = maker.bucket(capacity=1, checkout_timeout=10)
    entry = bucket.checkout()
    served = []

    def wait(name):
        mine = bucket.checkout()
        served.append(name)
        bucket.give_back(mine)

    threads = []
    for name in range(5):
        threads.append(threading.Thread(target=wait, args=(name,)))
        threads[-1].start()
        eventually(lambda: bucket.stats()["waiting"] == len(threads))
    bucket.give_back(entry)
    for thread in threads:
        thread.join(10)
    assert [0, 1, 2, 3, 4] == served


@pytest.mark.parametrize("fair_after", [0.0, 60.0])
def test_entries_that_come_back_together_serve_as_many_waiters(maker, fair_after):
    """Two returns in a row serve two waiters, neither of whom has to end its lease for the other."""
    for _ in range(20):
        bucket = maker.bucket(capacity=2, checkout_timeout=20, fair_after=fair_after)
        entries = [bucket.checkout(), bucket.checkout()]
        both = threading.Barrier(2)

        def use(bucket=bucket, both=both):
            entry = bucket.checkout()
            both.wait(20)  # broken unless both have an entry at the same time
            bucket.give_back(entry)

        with ThreadPoolExecutor(2) as threads:
            waiting = [threads.submit(use) for _ in range(2)]
            eventually(lambda bucket=bucket: bucket.stats()["waiting"] == 2)
            for entry in entries:
                bucket.give_back(entry)
            for each in waiting:
                each.result(30)
        bucket.refuse()


async def test_threads_and_tasks_wait_in_one_queue(maker):
    """A thread's return serves a task that waits, and a task's return a thread."""
    bucket = maker.bucket(capacity=1, checkout_timeout=10)
    entry = bucket.checkout()
    task = asyncio.create_task(bucket.checkout_async())
    await eventually_async(lambda: bucket.stats()["waiting"] == 1)
    thread = threading.Thread(target=bucket.give_back, args=(entry,))
    thread.start()
    assert entry is await asyncio.wait_for(task, 10)
    waiting = asyncio.create_task(asyncio.to_thread(bucket.checkout))
    await eventually_async(lambda: bucket.stats()["waiting"] == 1)
    bucket.give_back(entry)
    assert entry is await asyncio.wait_for(waiting, 10)
    bucket.give_back(entry)
    thread.join(10)


@pytest.mark.parametrize("fair_after", [0.0, 0.001])
def test_the_cap_holds_and_no_wake_up_is_lost(maker, fair_after):
    """Many threads that check out, fail, wait and discard at once never exceed the cap and all come through."""
    bucket = maker.bucket(capacity=3, checkout_timeout=30, fair_after=fair_after)
    busy = set()

    def churn(seed):
        choose = random.Random(seed)
        for _ in range(300):
            entry = bucket.checkout()
            assert entry.resource not in busy
            busy.add(entry.resource)
            if choose.random() < 0.2:
                time.sleep(0)
            busy.remove(entry.resource)
            (bucket.discard if choose.random() < 0.1 else bucket.give_back)(entry)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(churn, range(16)))
    assert maker.most <= 3
    stats = bucket.stats()
    assert (0, 0, 4800) == (stats["active"], stats["waiting"], stats["hits"] + stats["misses"])


async def test_cancelled_waiters_lose_nothing(maker):
    """What was granted to a task that is being cancelled goes to the next one."""
    bucket = maker.bucket(capacity=2, checkout_timeout=30)

    async def use(n):
        entry = await bucket.checkout_async()
        try:
            await asyncio.sleep(0)
        finally:
            bucket.give_back(entry)

    for round_ in range(50):
        tasks = [asyncio.create_task(use(n)) for n in range(20)]
        await asyncio.sleep(0)
        for task in random.Random(round_).sample(tasks, 10):
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        assert 0 == bucket.stats()["active"]


def test_a_failed_creation_frees_its_place(maker):
    """When a connection cannot be made, the next caller may try."""
    bucket = maker.bucket(capacity=1)
    good, maker.create = maker.create, lambda: 1 / 0
    broken = maker.bucket(capacity=1)
    with pytest.raises(ZeroDivisionError):
        broken.checkout()
    broken._create = good
    broken.give_back(broken.checkout(timeout=0))
    bucket.give_back(bucket.checkout(timeout=0))


def test_old_and_unusable_connections_are_replaced_at_the_checkout(maker):
    """A connection past its lifetime, or one that no longer works, is not handed out."""
    bucket = maker.bucket(max_lifetime=0.01)

    def replaced():
        entry = bucket.checkout()
        bucket.give_back(entry)
        return entry.resource > 0

    eventually(replaced)
    alive = maker.bucket(usable=lambda entry, now: False)
    first = alive.checkout()
    alive.give_back(first)
    second = alive.checkout()
    alive.give_back(second)
    assert first is not second
    assert first.resource not in maker.open


@pytest.mark.parametrize("found_by", ["checkout", "give_back", "sweep"])
def test_who_closes_a_connection_for_its_age_counts_it(maker, found_by):
    """One past its lifetime counts as cleaned, not as discarded, whether it was idle then or leased."""
    bucket = maker.bucket()
    entry = bucket.checkout()
    if found_by != "give_back":
        bucket.give_back(entry)
    entry.expires_at = time.monotonic()
    if found_by == "sweep":
        bucket.sweep()
    else:
        bucket.give_back(entry if found_by == "give_back" else bucket.checkout())
    assert entry.resource not in maker.open
    assert (1, 0) == (bucket.stats()["cleaned"], bucket.stats()["discarded"])


def test_what_is_closed_for_other_reasons_is_not_counted_as_cleaned(maker):
    """Neither what broke while it was idle, nor what was leased when all were to be closed."""
    broken = maker.bucket(usable=lambda entry, now: False)
    broken.give_back(broken.checkout())
    broken.give_back(broken.checkout())
    assert 0 == broken.stats()["cleaned"]
    cleared = maker.bucket()
    entry = cleared.checkout()
    cleared.clear()
    cleared.give_back(entry)
    assert (0, 0) == (cleared.stats()["total"], cleared.stats()["cleaned"])


def test_a_connection_that_broke_before_its_first_use_is_replaced(maker):
    """A spare connection that no longer works is not handed out; one made for its caller just now is taken as it is."""
    bucket = maker.bucket(usable=lambda entry, now: False)
    bucket.fill(1)
    (spare,) = maker.open

    entry = bucket.checkout()

    assert spare != entry.resource
    assert {entry.resource} == maker.open
    bucket.give_back(entry)


def test_connections_made_together_do_not_end_together(maker):
    """Lifetimes are spread over the last tenth of `max_lifetime`, and none is longer."""
    bucket = maker.bucket(capacity=200, max_lifetime=1000.0)
    began = time.monotonic()
    entries = [bucket.checkout() for _ in range(200)]
    ended = time.monotonic()
    ends = sorted(entry.expires_at for entry in entries)
    assert began + 900 <= ends[0]
    assert ends[-1] <= ended + 1000
    tenths = {int((end - began - 900) // 10) for end in ends}
    assert len(tenths) >= 8  # of 200 drawn at random, at least 8 of 10 equal parts have one
    assert 200 == len(set(ends))
    for entry in entries:
        bucket.give_back(entry)


def test_an_idle_connection_is_not_active(maker):
    """Only what is checked out now counts as active, however much is open."""
    bucket = maker.bucket(capacity=5)
    entries = [bucket.checkout() for _ in range(5)]
    for returned, entry in enumerate(entries):
        figures = bucket.stats()
        assert (5, 5 - returned, returned) == (figures["total"], figures["active"], figures["idle"])
        bucket.give_back(entry)
    assert (5, 0, 5) == tuple(bucket.stats()[name] for name in ("total", "active", "idle"))


def test_idle_connections_expire_down_to_the_minimum(maker):
    """Housekeeping closes what is idle too long, the coldest first, and leaves the minimum open."""
    bucket = maker.bucket(capacity=5, min_idle=2, idle_timeout=0.01)
    for entry in [bucket.checkout() for _ in range(5)]:
        bucket.give_back(entry)

    def swept():
        bucket.sweep()
        return bucket.stats()["total"] == 2

    eventually(swept)
    assert 3 == bucket.stats()["cleaned"]
    assert {3, 4} == maker.open


def test_the_minimum_is_made_ahead(maker):
    """`fill` makes the minimum of idle connections, which then count as hits."""
    bucket = maker.bucket(capacity=5, min_idle=2)
    bucket.fill()
    assert {0, 1} == maker.open
    bucket.give_back(bucket.checkout())
    assert 1 == bucket.stats()["hits"]


def test_a_lease_held_too_long_is_reported_once(maker, caplog):
    """The report names the line of the checkout; a second sweep says nothing."""
    bucket = maker.bucket(leak_threshold=0.001)
    entry = bucket.checkout()
    eventually(lambda: time.monotonic() - entry.leased_at > 0.001)
    with caplog.at_level(logging.WARNING):
        bucket.sweep()
        bucket.sweep()
    assert 1 == len(caplog.records)
    assert "test_a_lease_held_too_long_is_reported_once" in caplog.text
    bucket.give_back(entry)


def test_a_paused_bucket_lets_everyone_wait(maker):
    """While paused nothing is handed out; `resume` serves who waited, with the same connection."""
    bucket = maker.bucket(checkout_timeout=10)
    entry = bucket.checkout()
    idle = bucket.checkout()
    bucket.give_back(idle)
    bucket.pause()
    bucket.give_back(entry)
    with pytest.raises(PoolTimeout):
        bucket.checkout(timeout=0.01)
    got = []
    waiting = threading.Thread(target=lambda: got.append(bucket.checkout()))
    waiting.start()
    eventually(lambda: bucket.stats()["waiting"] == 1)
    bucket.resume()
    waiting.join(10)
    assert got[0] in (entry, idle)
    assert 2 == bucket.stats()["total"]


def test_a_paused_bucket_can_be_closed(maker):
    """Closing ends a pause: those who wait are told, and what was set aside is closed."""
    bucket = maker.bucket(checkout_timeout=10)
    bucket.give_back(bucket.checkout())
    bucket.pause()
    bucket.refuse()
    assert set() == maker.open
    with pytest.raises(PoolClosed):
        bucket.checkout()


def test_closing_takes_any_number_of_idle_connections(maker):
    """Closing is a loop and not a recursion: thousands of idle connections are closed one after another."""
    bucket = maker.bucket(capacity=5000)
    for entry in [bucket.checkout() for _ in range(5000)]:
        bucket.give_back(entry)
    bucket.refuse()
    assert set() == maker.open
    assert [] == bucket.drain(0)


def test_a_detached_connection_is_the_callers(maker):
    """Detaching frees the place and leaves the connection open."""
    bucket = maker.bucket(capacity=1)
    assert 0 == bucket.detach(bucket.checkout())
    entry = bucket.checkout(timeout=0)
    assert 1 == entry.resource
    assert {0, 1} == maker.open
    bucket.give_back(entry)


def test_a_lease_that_was_lost_is_warned_about_and_its_place_is_free(maker):
    """An entry that nobody has any more gives a ResourceWarning with its checkout's place, and is closed."""
    bucket = maker.bucket(capacity=1)
    for _ in range(3):
        with pytest.warns(ResourceWarning, match="test_a_lease_that_was_lost"):
            bucket.checkout(timeout=0)
        assert 0 == bucket.stats()["total"]
        assert set() == maker.open
    assert [] == bucket.drain(0)


def test_a_lost_lease_in_a_cycle_frees_its_place_for_who_waits(maker):
    """The place of a lease that only the garbage collector can find goes to the one who waits, at the next sweep."""
    bucket = maker.bucket(capacity=1, checkout_timeout=20)
    cycle = [bucket.checkout()]
    cycle.append(cycle)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(bucket.checkout)
        eventually(lambda: bucket.stats()["waiting"] == 1)
        del cycle
        with pytest.warns(ResourceWarning, match="test_a_lost_lease_in_a_cycle"):
            gc.collect()
        bucket.sweep()
        entry = waiting.result(20)
    assert {1} == maker.open
    bucket.give_back(entry)


def test_a_lease_may_be_lost_in_the_middle_of_any_critical_section(maker):
    """A finaliser that runs while its thread holds the locks of the bucket and of the budget waits for neither."""
    budget = Budget(1)
    bucket = maker.bucket(capacity=1, budget=budget)
    entry = bucket.checkout()

    def lose():
        nonlocal entry
        with budget._lock, bucket._lock:
            entry = None

    with ThreadPoolExecutor(1) as threads:
        with pytest.warns(ResourceWarning, match="was never ended"):
            threads.submit(lose).result(20)
    bucket.give_back(bucket.checkout(timeout=0))
    assert {1} == maker.open


def test_no_lease_is_lost_that_was_given_back_or_dropped_with_its_bucket(maker, recwarn):
    """Idle, discarded and detached connections, and a bucket dropped as a whole, give no warning."""
    bucket = maker.bucket(capacity=4)
    bucket.give_back(bucket.checkout())
    bucket.discard(bucket.checkout())
    bucket.detach(bucket.checkout())
    bucket.give_back(bucket.checkout())
    del bucket
    gc.collect()
    assert [] == list(recwarn)


def test_closing_fails_those_who_wait_and_names_those_who_hold(maker):
    """`refuse` fails waiters at once; `drain` says who still holds; a late return is closed."""
    bucket = maker.bucket(capacity=1, checkout_timeout=10)
    entry = bucket.checkout()
    errors = []

    def wait():
        try:
            bucket.checkout()
        except PoolClosed as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    eventually(lambda: bucket.stats()["waiting"] == 1)
    bucket.refuse()
    waiting.join(10)
    assert 1 == len(errors)
    (holder,) = bucket.drain(0.01)
    assert "test_closing_fails_those_who_wait_and_names_those_who_hold" in holder
    bucket.give_back(entry)
    assert [] == bucket.drain(10)
    assert set() == maker.open


def test_a_returned_connection_past_its_end_is_closed(maker):
    """After `clear`, a connection that is out is closed at its return."""
    bucket = maker.bucket()
    entry = bucket.checkout()
    bucket.clear()
    bucket.give_back(entry)
    assert set() == maker.open


def test_clearing_closes_what_a_pause_has_set_aside(maker):
    """A paused bucket that is cleared has nothing open, and serves with new connections afterwards."""
    bucket = maker.bucket()
    bucket.give_back(bucket.checkout())
    bucket.pause()
    bucket.clear()

    assert not maker.open
    bucket.resume()
    entry = bucket.checkout()
    assert 1 == entry.resource
    bucket.give_back(entry)


def test_a_forked_child_starts_empty(maker):
    """A child's bucket hands out connections of its own, and returning the parent's closes nothing."""
    bucket = maker.bucket(capacity=2)
    entry = bucket.checkout()
    bucket.give_back(bucket.checkout())
    bucket.forget_after_fork()
    own = bucket.checkout()
    assert 2 == own.resource
    bucket.give_back(entry)
    bucket.discard(entry)
    assert {0, 1, 2} == maker.open
    another = bucket.checkout(timeout=0)
    assert 3 == another.resource
    bucket.give_back(own)
    bucket.give_back(another)


def test_uses_and_waits_are_measured(maker):
    """The statistics tell how long leases and waits took."""
    bucket = maker.bucket(capacity=1)
    bucket.give_back(bucket.checkout())
    assert {"count": 1} == {"count": bucket.stats()["use"]["count"]}
    entry = bucket.checkout()
    with pytest.raises(PoolTimeout):
        bucket.checkout(timeout=0.01)
    assert bucket.stats()["wait"]["max"] >= 0.01
    bucket.give_back(entry)


# The cap over several buckets


def test_buckets_share_a_budget(maker):
    """Two buckets together never have more connections than their budget, and the error says that it is used up."""
    budget = Budget(3)
    one, two = (maker.bucket(capacity=3, budget=budget) for _ in range(2))
    held = [one.checkout(), one.checkout(), two.checkout()]
    with pytest.raises(PoolTimeout, match="all 3 connections"):
        two.checkout(timeout=0.01)
    one.discard(held[0])
    two.give_back(two.checkout(timeout=0))
    assert 3 == maker.most
    one.give_back(held[1])
    two.give_back(held[2])


def test_a_budget_takes_idle_connections_from_other_buckets(maker):
    """A bucket that needs a place has the coldest idle connection of another one closed."""
    budget = Budget(2)
    one, two = (maker.bucket(capacity=2, budget=budget, idle_timeout=60) for _ in range(2))
    first, second = one.checkout(), one.checkout()
    one.give_back(first)
    one.give_back(second)
    entry = two.checkout(timeout=0)
    assert 2 == entry.resource
    assert {1, 2} == maker.open
    two.give_back(entry)


def test_a_place_in_the_budget_reaches_a_waiter_of_another_bucket(maker):
    """Whoever waits for the budget is served when any bucket gives a place up, also under churn."""
    budget = Budget(2)
    buckets = [maker.bucket(capacity=2, budget=budget, checkout_timeout=30, idle_timeout=60) for _ in range(4)]

    def churn(seed):
        choose = random.Random(seed)
        for _ in range(100):
            bucket = choose.choice(buckets)
            (bucket.discard if choose.random() < 0.5 else bucket.give_back)(bucket.checkout())

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(churn, range(8)))
    assert maker.most <= 2
    assert budget.left == 2 - len(maker.open)


def test_a_lease_that_ends_with_its_call_is_described_by_what_its_thread_does():
    """With the thread's identifier as its site, a timeout names the line at which the holder is now."""
    bucket = Bucket("sql", "key", Limits(capacity=1), create=object, destroy=lambda _: None)
    held, done = threading.Event(), threading.Event()

    def hold():
        entry = bucket.checkout(None, threading.get_ident())
        held.set()
        done.wait(20)
        bucket.give_back(entry)

    with ThreadPoolExecutor(1) as threads:
        holder = threads.submit(hold)
        held.wait(20)
        with pytest.raises(PoolTimeout, match=r"checked out at .*test_bucket\.py:\d+ in hold"):
            bucket.checkout(0)
        done.set()
        holder.result(20)


def test_whoever_waits_for_a_shared_budget_is_told_who_holds_it(maker):
    """With all places in another bucket, the error names that one's longest holder."""
    budget = Budget(1)
    one, two = (maker.bucket(capacity=1, budget=budget) for _ in range(2))
    entry = one.checkout()
    with pytest.raises(PoolTimeout, match=r"0 of 1 in use.*held longest.*test_whoever_waits_for_a_shared_budget"):
        two.checkout(timeout=0.01)
    one.give_back(entry)


def test_a_connection_that_becomes_idle_is_given_up_for_a_bucket_that_waits(maker):
    """A return to one bucket serves the waiter of another at once, without anybody looking again and again."""
    budget = Budget(1)
    one, two = (maker.bucket(capacity=1, budget=budget, idle_timeout=60, checkout_timeout=20) for _ in range(2))
    for _ in range(100):
        entry = one.checkout()
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(two.checkout)
            eventually(lambda: two.stats()["waiting"] == 1)
            before = threading.active_count()
            one.give_back(entry)
            two.give_back(waiting.result(20))
            assert threading.active_count() == before
    assert 1 == maker.most
    assert not budget.hungry


def test_a_bucket_that_always_has_waiters_does_not_get_every_place(maker):
    """Of two places that become free, one goes to who has waited longest, and the next to another bucket's waiter."""
    budget = Budget(2)
    crowded, other = (maker.bucket(capacity=5, budget=budget, checkout_timeout=5) for _ in range(2))
    for _ in range(20):
        held = [crowded.checkout(), crowded.checkout()]
        with ThreadPoolExecutor(4) as threads:
            many = [threads.submit(crowded.checkout) for _ in range(3)]
            eventually(lambda: crowded.stats()["waiting"] == 3)
            one = threads.submit(other.checkout)
            eventually(lambda: other.stats()["waiting"] == 1)
            for entry in held:
                crowded.discard(entry)
            other.discard(one.result(20))
            for served in as_completed(many, 20):
                crowded.discard(served.result())
    assert 2 == maker.most


async def test_a_place_that_becomes_free_beside_a_return_is_not_forgotten(maker):
    """Of two waiters one is served by a connection that is returned, the other by a place that becomes free with it."""
    for _ in range(20):
        bucket = maker.bucket(capacity=2, fair_after=10, checkout_timeout=20)
        first, second = bucket.checkout(), bucket.checkout()
        waiting = [asyncio.create_task(bucket.checkout_async()) for _ in range(2)]
        await eventually_async(lambda bucket=bucket: bucket.stats()["waiting"] == 2)
        bucket.give_back(first)
        bucket.discard(second)
        for entry in await asyncio.wait_for(asyncio.gather(*waiting), 10):
            bucket.give_back(entry)
        bucket.clear()


def test_a_return_by_a_finaliser_of_one_bucket_may_come_in_the_middle_of_anothers(maker):
    """Who returns a connection within a critical section of the budget does not wait for who wants it."""
    budget = Budget(2)
    bucket = maker.bucket(capacity=2, budget=budget, checkout_timeout=10)
    entry = bucket.checkout()
    with ThreadPoolExecutor(1) as threads:
        with budget._lock:  # as it is held when the collector finalises a lease there
            waiting = threads.submit(bucket.checkout)
            with contextlib.suppress(AssertionError):  # where buckets have locks of their own
                eventually(lambda: not bucket._lock.acquire(blocking=False) or bucket._lock.release(), 0.3)
            bucket.discard(entry)
        bucket.give_back(waiting.result(10))


def test_housekeeping_is_in_nobodys_way(maker):
    """Who does not wait is never refused because housekeeping looks at the one idle connection at that moment."""
    bucket = maker.bucket(capacity=1)
    over = threading.Event()

    def sweep():
        while not over.is_set():
            bucket.sweep()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as threads:
            sweeping = threads.submit(sweep)
            try:
                for _ in range(10_000):
                    bucket.give_back(bucket.checkout(timeout=0))
            finally:
                over.set()
            sweeping.result(20)
    finally:
        sys.setswitchinterval(before)


def test_a_lease_lost_during_a_stop_is_not_waited_for(maker):
    """`drain` notices that nobody can return a connection any more, and ends."""
    bucket = maker.bucket(capacity=1)
    entry = bucket.checkout()
    bucket.refuse()
    with ThreadPoolExecutor(1) as threads:
        draining = threads.submit(bucket.drain, 60)
        with pytest.warns(ResourceWarning, match="was never ended"):
            del entry
        assert [] == draining.result(20)
