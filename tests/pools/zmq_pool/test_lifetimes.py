"""How long sockets live, how long they are leased, and what happens to those that leave the pool."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import LeaseLeaked, PoolTimeout
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool, get_zmq_pool
from tests.support.echo import replier
from tests.support.waiting import eventually, eventually_async


@pytest.fixture
def config():
    with replier() as endpoint:
        yield SocketConfig(SocketType.REQ, endpoint)


def figures(pool, config):
    return pool.get_stats()["pools"][config.label]


def lease_together(pool, config, count):
    """Return the sockets of so many leases that are out at the same time; the first was leased first."""
    with ExitStack() as leases:
        return [leases.enter_context(pool.socket(config)) for _ in range(count)]


def test_a_burst_of_sockets_shrinks_to_those_in_use(config):
    """After a burst one caller uses the warmest socket alone, and those that stay idle are closed."""
    with ZMQPool(ZMQPoolSettings(max_idle_time=0.3)) as pool:
        burst = lease_together(pool, config, 10)
        used = set()

        def shrunk():
            with pool.socket(config) as socket:
                used.add(socket)
                pool.sweep()
            return figures(pool, config)["total"] == 1

        eventually(shrunk)
        assert 9 == figures(pool, config)["cleaned"]
        (kept,) = used
        assert [socket for socket in burst if not socket.closed] == [kept]


def test_a_socket_past_its_lifetime_is_replaced_between_two_leases(config):
    """A REQ that has lived long enough is not leased again, however busy, and never closed under its lessee."""
    with ZMQPool(ZMQPoolSettings(max_lifetime=0.2)) as pool:
        with pool.socket(config) as first:
            began = time.monotonic()
            eventually(lambda: time.monotonic() - began > 0.2)
            pool.sweep()
            first.send(b"still there")
            assert b"still there" == first.recv()
        assert first.closed
        seen = set()

        def replaced():
            with pool.socket(config) as socket:
                seen.add(socket)
                socket.send(b"a")
                assert b"a" == socket.recv()
            return len(seen) == 3

        eventually(replaced)
        assert 1 == figures(pool, config)["total"]


def test_an_idle_socket_past_its_lifetime_is_closed(config):
    """Housekeeping closes an idle REQ at the end of its lifetime, long before it was idle too long."""
    with ZMQPool(ZMQPoolSettings(max_lifetime=0.1, health_check_interval=0.02)) as pool:
        (socket,) = lease_together(pool, config, 1)
        eventually(lambda: figures(pool, config)["total"] == 0)
        assert socket.closed
        assert 1 == figures(pool, config)["cleaned"]


def test_active_sockets_are_those_that_are_leased_now(config):
    """Idle sockets are not counted as active, by the pool as a whole nor by key, nor are those in a bound endpoint."""
    with ZMQPool() as pool:
        bound = SocketConfig(SocketType.PULL, "tcp://127.0.0.1:*", bind=True)
        lease_together(pool, config, 5)
        lease_together(pool, bound, 1)
        assert (6, 0) == counts(pool)
        with pool.socket(config), pool.socket(config), pool.socket(bound):
            assert (6, 3) == counts(pool)
            assert (5, 2, 3) == tuple(figures(pool, config)[name] for name in ("total", "active", "idle"))
        assert (6, 0) == counts(pool)


def counts(pool):
    metrics = pool.get_stats()["metrics"]
    return metrics["total_connections"], metrics["active_connections"]


def test_closing_waits_for_no_request_and_a_while_for_what_was_pushed(config):
    """A closed REQ drops its request, of which nobody would read the reply; a PUSH has two seconds to deliver."""
    with ZMQPool() as pool:
        with pool.socket(config) as asking:
            assert 0 == asking.linger
        with pool.socket(SocketConfig(SocketType.PUSH, "inproc://lingering", bind=True)) as pushing:
            assert 2000 == pushing.linger


# Leases that are not ended


@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER])
def test_a_lease_held_too_long_is_logged_once_with_its_stack(config, caplog, kind):
    """The log names the key, the line of the checkout and its callers, once for each lease."""
    key = SocketConfig(kind, config.endpoint)

    def outer(pool, turn):
        inner(pool, turn)

    def inner(pool, turn):
        with pool.socket(key):
            eventually(lambda: len(caplog.records) == turn)
            for _ in range(5):
                pool.sweep()

    with (
        caplog.at_level(logging.WARNING),
        ZMQPool(ZMQPoolSettings(leak_threshold=0.02, health_check_interval=0.01)) as pool,
    ):
        for turn in range(1, 3):
            outer(pool, turn)
            logged = [record.getMessage() for record in caplog.records]
            assert turn == len(logged)  # the second lease is another one, of the same socket
            assert f"a zmq connection for {key.label} was not given back yet: held for " in logged[-1]
            assert logged[-1].index("in inner") < logged[-1].index("in outer")


async def test_a_tasks_lease_held_too_long_is_logged(config, caplog):
    """A lease of `async with` is logged with the line of its checkout."""
    with (
        caplog.at_level(logging.WARNING),
        ZMQPool(ZMQPoolSettings(leak_threshold=0.02, health_check_interval=0.01)) as pool,
    ):
        async with pool.socket(config):
            await eventually_async(lambda: caplog.records)
    (record,) = caplog.records
    assert "in test_a_tasks_lease_held_too_long_is_logged" in record.getMessage()


SHORT = [("REQ", False), ("DEALER", False), ("PUSH", False), ("PUB", False), ("PUB", True)]
LONG = [("SUB", False), ("PULL", False), ("REP", False), ("REP", True), ("PULL", True), ("DEALER", True)]


@pytest.mark.parametrize(("kind", "bind"), SHORT + LONG)
def test_a_lease_held_too_long_is_logged_if_it_is_meant_to_be_short(config, caplog, kind, bind):
    """It is for what asks or sends, and for a socket on which a service listens only if its configuration says so."""
    endpoint = "tcp://127.0.0.1:*" if bind else config.endpoint
    key = SocketConfig(kind, endpoint, bind=bind, subscriber_wait=0.01)
    with (
        caplog.at_level(logging.WARNING),
        ZMQPool(ZMQPoolSettings(leak_threshold=0.001, health_check_interval=3600)) as pool,
    ):

        def logged(key):
            caplog.clear()
            with pool.socket(key):
                held_since = time.monotonic()
                eventually(lambda: time.monotonic() > held_since + 0.002)
                for _ in range(3):
                    pool.sweep()
            return len(caplog.records)

        assert ((kind, bind) in SHORT) == logged(key)
        assert 1 == logged(replace(key, leak_threshold=0.001))
        assert 0 == logged(replace(key, leak_threshold=0))


@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.SUB, SocketType.PUSH])
def test_a_lease_never_returned_is_found_at_the_stop(config, kind):
    """`stop` ends in time and names key, age and stack of the lease, whatever its type; the socket works no more."""
    key = SocketConfig(kind, config.endpoint, linger=0.01)
    pool = ZMQPool()
    lease = pool.socket(key)

    def take():
        return lease.__enter__()

    socket = take()
    with pytest.raises(LeaseLeaked) as leaked:
        pool.stop(timeout=0.1)
    (holder,) = leaked.value.holders
    assert holder.startswith(f"{key.label}, held for ")
    assert "in take" in holder
    with pytest.raises(zmq.ZMQError):
        socket.poll(0)
    lease.__exit__(None, None, None)
    assert socket.closed


def test_leases_of_several_keys_are_all_named_at_the_stop(config):
    """Each lease that is out at the stop has a line of its own."""
    pool = ZMQPool()
    keys = [SocketConfig(SocketType.REQ, config.endpoint, receive_timeout=1 + n) for n in range(3)]
    with ExitStack() as leases:
        for key in keys:
            leases.enter_context(pool.socket(key))
        with pytest.raises(LeaseLeaked, match=r"stopped with 3 lease\(s\) not given back") as leaked:
            pool.stop(timeout=0.1)
        assert 3 == len(leaked.value.holders)
        assert all("test_leases_of_several_keys" in holder for holder in leaked.value.holders)


async def test_a_tasks_lease_never_ended_is_warned_about(config):
    """A lease that a task drops without its end gives a ResourceWarning, and the place is free again."""
    key = SocketConfig(SocketType.REQ, config.endpoint, max_connections=1)
    with ZMQPool() as pool:
        for _ in range(3):
            with pytest.warns(ResourceWarning, match="in test_a_tasks_lease_never_ended_is_warned_about"):
                await pool.socket(key).__aenter__()
            assert (0, 0) == counts(pool)
        assert b"a" == await asyncio.to_thread(pool.request, key, b"a")


def test_a_timeout_of_a_real_pool_names_its_holder(config):
    """The error of a lease that was waited for in vain has every fact, for a thread."""
    key = SocketConfig(SocketType.REQ, config.endpoint, max_connections=2)
    with ZMQPool() as pool, pool.socket(key), pool.socket(key), ThreadPoolExecutor(1) as threads:
        patient = threads.submit(pool.request, key, b"a", 0.5)
        eventually(lambda: figures(pool, key)["waiting"] == 1)
        with pytest.raises(PoolTimeout) as refused:
            pool.request(key, b"b", timeout=0.05)
        check_facts(refused.value, key)
        with pytest.raises(PoolTimeout):
            patient.result(30)


async def test_a_timeout_of_a_real_pool_in_a_task_names_its_holder(config):
    """The error of a lease that was waited for in vain has every fact, for a task."""
    key = SocketConfig(SocketType.REQ, config.endpoint, max_connections=2)
    with ZMQPool() as pool:
        async with pool.socket(key), pool.socket(key):

            async def wait(seconds):
                async with pool.socket(key, timeout=seconds):
                    pass

            patient = asyncio.create_task(wait(0.5))
            await eventually_async(lambda: figures(pool, key)["waiting"] == 1)
            with pytest.raises(PoolTimeout) as refused:
                await wait(0.05)
            check_facts(refused.value, key)
            with pytest.raises(PoolTimeout):
                await patient


def check_facts(refused, key):
    facts = (refused.pool, refused.key, refused.capacity, refused.in_use, refused.waiters, refused.setting)
    assert ("zmq", key.label, 2, 2, 1, "max_connections of its SocketConfig") == facts
    assert 0.05 <= refused.waited < 30
    assert "in test_a_timeout_of_a_real_pool" in refused.longest_holder


# Sockets that leave, and pools that pause


async def test_a_socket_detached_in_a_task_is_the_callers(config):
    """A detached socket outlives its asyncio lease, works, and is not counted; its place is free."""
    key = SocketConfig(SocketType.REQ, config.endpoint, max_connections=1)
    with ZMQPool() as pool:
        lease = pool.socket(key)
        async with lease:
            mine = lease.detach()
            assert (0, 0) == counts(pool)
            async with pool.socket(key) as another:
                await another.send(b"a")
                assert b"a" == await another.recv()
        mine.send(b"b")
        assert mine.poll(20_000)
        assert b"b" == mine.recv()
        mine.close()
        assert (1, 0) == counts(pool)


def test_a_detached_socket_does_not_hold_up_the_stop(config, caplog):
    """A pool stops in time beside a socket that was detached and not closed, and says so; nobody holds a lease."""
    pool = ZMQPool()
    lease = pool.socket(config)
    with lease:
        mine = lease.detach()
    began = time.monotonic()
    pool.stop(timeout=0.1)
    assert time.monotonic() - began < 10
    assert "still has open sockets" in caplog.text
    with pytest.raises(zmq.ContextTerminated):
        mine.send(b"a")
    mine.close()


def test_only_a_lease_that_is_out_can_be_detached(config):
    """Before its begin, after its end and a second time there is nothing to detach."""
    with ZMQPool() as pool:
        lease = pool.socket(config)
        with pytest.raises(RuntimeError, match="only a lease that is out"):
            lease.detach()
        with lease:
            lease.detach().close()
            with pytest.raises(RuntimeError, match="only a lease that is out"):
                lease.detach()
        with lease:
            pass
        with pytest.raises(RuntimeError, match="only a lease that is out"):
            lease.detach()


async def test_a_paused_pool_lets_leases_that_are_out_go_on(config):
    """During a pause who has a socket may use and return it; threads and tasks that want one get it afterwards."""
    key = SocketConfig(SocketType.REQ, config.endpoint, max_connections=1, multiplexed=False)
    with ZMQPool() as pool:
        with pool.socket(key) as socket:
            pool.pause()
            socket.send(b"during")
            assert b"during" == socket.recv()
        thread = asyncio.create_task(asyncio.to_thread(pool.request, key, b"thread", 20))
        task = asyncio.create_task(pool.request_async(key, b"task", 20))
        await eventually_async(lambda: figures(pool, key)["waiting"] == 2)
        assert (1, 0) == counts(pool)
        assert not thread.done()
        assert not task.done()
        pool.resume()
        assert [b"thread", b"task"] == await asyncio.wait_for(asyncio.gather(thread, task), 20)
        with pool.socket(key) as again:
            assert socket is again


def test_the_default_pool_is_alive_after_its_stop(config):
    """Whoever asks for the default pool after a stop gets one that works."""
    for number in range(3):
        assert b"%d" % number == get_zmq_pool().request(config, b"%d" % number)
        get_zmq_pool().stop()
