"""Leased sockets: what a lessee gets, and what the next one gets."""

import asyncio
import dataclasses
import math
import pickle
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import ConfigError, EndpointBusy, LeaseLeaked, NoReply, NotSent, PoolTimeout, UnexpectedReply
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool, get_zmq_pool
from app.pools.zmq_pool.context import socket_limit
from app.pools.zmq_pool.timeouts import ReplyLost, ReplyTimedOut
from tests.support.echo import replier
from tests.support.waiting import eventually, eventually_async


@pytest.fixture
def pool():
    with ZMQPool(ZMQPoolSettings(max_connections=3)) as pool:
        yield pool


def test_the_origins_example_works_as_written():
    """The example of the code base that poolwire replaces works unchanged."""
    with replier(lambda frames: [b"response"], "tcp://127.0.0.1:5555"):
        pool = get_zmq_pool()
        config = SocketConfig(SocketType.REQ, "tcp://localhost:5555")
        with pool.socket(config) as socket:
            socket.send_string("message")
            response = socket.recv_string()
        assert "response" == response
        pool.stop()


def test_a_socket_returns_to_the_next_lessee(pool):
    """A REQ whose request was answered is handed to the next lessee."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        with pool.socket(config) as first:
            first.send(b"a")
            assert b"a" == first.recv()
        with pool.socket(config) as second:
            assert first is second
        assert 1 == pool.get_stats()["metrics"]["pool_hits"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_costs_the_socket(pool, error):
    """A REQ whose lessee failed, or was interrupted, is closed."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        with pytest.raises(error), pool.socket(config) as first:
            raise error
        assert first.closed
        with pool.socket(config) as second:
            assert first is not second


def test_a_request_without_its_reply_costs_the_socket(pool):
    """The next lessee never reads the reply to a request that the last one left unanswered."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        with pool.socket(config) as socket:
            socket.send(b"a stranger's")
        for _ in range(20):
            assert b"mine" == pool.request(config, b"mine")


@pytest.mark.parametrize("receive", ["recv", "recv_string", "frame"])
def test_frames_left_unread_cost_the_socket(pool, receive):
    """A lessee that leaves frames of its reply unread leaves no trace of them to the next one, who has a new socket."""
    with replier(lambda frames: [*frames, b"rest", b"of it"]) as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint, max_connections=1)
        for ask, body in (("send", b"mine"), ("send_string", "mine"), ("send_multipart", [b"mine"])):
            with pool.socket(config) as first:
                first.send(b"a stranger's")
                first.recv(copy=False) if receive == "frame" else getattr(first, receive)()
            assert first.closed
            with pool.socket(config) as socket:
                assert not socket.poll(0)
                assert not socket.get(zmq.RCVMORE)
                with pytest.raises(zmq.ZMQError, match="current state"):
                    socket.recv()
                getattr(socket, ask)(body)
                assert [b"mine", b"rest", b"of it"] == socket.recv_multipart()
        with pytest.raises(UnexpectedReply):
            pool.request(config, b"mine", timeout=10)
        assert 4 == next(iter(pool.get_stats()["pools"].values()))["discarded"]


def test_a_request_in_the_middle_of_a_reply_is_refused_as_in_zmq(pool):
    """The lessee itself who sends before it has read all of its reply gets libzmq's error."""
    with replier(lambda frames: [*frames, b"rest"]) as endpoint:
        with pool.socket(SocketConfig(SocketType.REQ, endpoint)) as socket:
            socket.send(b"a")
            assert b"a" == socket.recv()
            with pytest.raises(zmq.ZMQError, match="current state"):
                socket.send(b"b")
            assert b"rest" == socket.recv()
            socket.send(b"c")
            assert [b"c", b"rest"] == socket.recv_multipart()


def test_a_socket_closed_in_its_lease_is_never_leased_again(pool):
    """A socket that its lessee closed is replaced."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        with pool.socket(config) as socket:
            socket.close()
        assert b"b" == pool.request(config, b"b")


def test_a_changed_option_does_not_reach_the_next_lessee(pool):
    """Time limits that a lessee set are restored; any other option costs the socket."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint, receive_timeout=7)
        with pool.socket(config) as first:
            first.rcvtimeo = 10
        with pool.socket(config) as second:
            assert first is second
            assert 7000 == second.rcvtimeo
            second.setsockopt(zmq.LINGER, 5)
        assert second.closed


def test_no_peer_is_not_sent_and_no_answer_is_no_reply(pool, free_endpoint):
    """Without a peer a request is NotSent; with one that is silent it is NoReply; both are zmq.Again."""
    absent = SocketConfig(SocketType.REQ, free_endpoint, send_timeout=0.05)
    with pytest.raises(NotSent) as not_sent:
        pool.request(absent, b"a")
    assert isinstance(not_sent.value, zmq.Again)
    with replier(lambda frames: None if frames[0] == b"a" else frames) as endpoint:
        silent = SocketConfig(SocketType.REQ, endpoint, send_timeout=10, receive_timeout=0.05)
        with pytest.raises(NoReply) as no_reply:
            pool.request(silent, b"a")
        assert isinstance(no_reply.value, zmq.Again)
        config = SocketConfig(SocketType.REQ, endpoint, send_timeout=10)
        assert b"warm" == pool.request(config, b"warm")  # within the limit of the next one nothing needs to connect
        with pytest.raises(NoReply):
            pool.request(config, b"a", timeout=0.2)


def test_a_request_of_text_is_refused_by_the_call_that_made_it(pool, free_endpoint):
    """A request is bytes; text is refused at once, whoever listens."""
    with pytest.raises(TypeError, match="must be bytes, not str"):
        pool.request(SocketConfig(SocketType.REQ, free_endpoint), "text")


def test_the_cap_holds(pool):
    """The fourth of four lessees is refused when three may be out, and told who holds them."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        with pool.socket(config), pool.socket(config), pool.socket(config):
            with pytest.raises(PoolTimeout) as refused, pool.socket(config, timeout=0.05):
                pass
            assert (3, 3) == (refused.value.in_use, refused.value.capacity)
            assert "test_the_cap_holds" in str(refused.value)
        assert 0 == pool.get_stats()["metrics"]["active_connections"]


def test_a_bound_endpoint_has_one_owner_and_stays_bound(pool):
    """A second lease of a bound endpoint is refused; between leases it stays bound, and clients notice nothing."""
    config = SocketConfig(SocketType.REP, "tcp://127.0.0.1:*", bind=True)
    with pool.socket(config) as server:
        endpoint = server.last_endpoint.decode()
        with pytest.raises(EndpointBusy), pool.socket(config):
            pass
    asking = threading.Thread(target=pool.request, args=(SocketConfig(SocketType.REQ, endpoint), b"a"))
    asking.start()
    with pool.socket(config) as again:
        assert server is again
        assert b"a" == again.recv()
        again.send(b"b")
    asking.join(10)


def test_a_bound_reply_socket_left_half_way_is_bound_anew(pool, free_endpoint):
    """A REP whose lessee took a request and left is replaced, at the same endpoint."""
    config = SocketConfig(SocketType.REP, free_endpoint, bind=True)
    client = SocketConfig(SocketType.REQ, free_endpoint, receive_timeout=0.2)

    def ask_in_vain():
        with pytest.raises(NoReply):
            pool.request(client, b"lost")

    asking = threading.Thread(target=ask_in_vain)
    asking.start()
    with pool.socket(config) as server:
        assert b"lost" == server.recv()
    asking.join(10)
    patient = SocketConfig(SocketType.REQ, free_endpoint, send_timeout=10, receive_timeout=10)
    with pool.socket(config) as server, pool.socket(patient) as socket:
        socket.send(b"found")
        assert b"found" == server.recv()
        server.send(b"")
        socket.recv()


async def test_a_lease_in_asyncio_has_awaited_methods(pool):
    """`async with` gives a socket whose methods are awaited, and returns it to the same stack."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        async with pool.socket(config) as first:
            await first.send_string("hello")
            assert "hello" == await first.recv_string()
            await first.send_json({"a": 1})
            assert {"a": 1} == await first.recv_json()
        with pool.socket(config) as second:
            second.send(b"sync")
            assert b"sync" == second.recv()
        assert 1 == pool.get_stats()["metrics"]["total_connections"]


async def test_a_cancelled_request_costs_its_socket_and_nothing_else(pool):
    """A cancelled request gives its socket up; no later request sees its reply."""
    with replier(lambda frames: None if frames[0] == b"slow" else frames) as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        slow = [asyncio.create_task(pool.request_async(config, b"slow")) for _ in range(3)]
        await asyncio.sleep(0)
        for task in slow:
            task.cancel()
        assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*slow, return_exceptions=True))
        replies = await asyncio.gather(*(pool.request_async(config, b"%d" % n) for n in range(50)))
        assert [b"%d" % n for n in range(50)] == replies
        assert 0 == pool.get_stats()["metrics"]["active_connections"]


async def test_messages_reach_those_who_wait_in_order(pool):
    """Several tasks that wait on one socket get the messages in the order in which they began to wait."""
    bound = SocketConfig(SocketType.PULL, "tcp://127.0.0.1:*", bind=True)
    async with pool.socket(bound) as pull:
        endpoint = pull.last_endpoint.decode()
        waiting = [asyncio.create_task(pull.recv()) for _ in range(5)]
        await asyncio.sleep(0)
        for n in range(5):
            pool.push(SocketConfig(SocketType.PUSH, endpoint), b"%d" % n)
        assert [b"0", b"1", b"2", b"3", b"4"] == await asyncio.wait_for(asyncio.gather(*waiting), 10)


async def test_a_cancelled_receive_takes_no_message_with_it(pool):
    """A message that arrives while its receiver is being cancelled goes to the next one."""
    bound = SocketConfig(SocketType.PULL, "tcp://127.0.0.1:*", bind=True)
    async with pool.socket(bound) as pull:
        push = SocketConfig(SocketType.PUSH, pull.last_endpoint.decode())
        for n in range(100):
            receiving = asyncio.create_task(pull.recv())
            await asyncio.sleep(0)
            pool.push(push, b"%d" % n)
            if n % 2:
                await asyncio.sleep(0.001)
            receiving.cancel()
            (outcome,) = await asyncio.gather(receiving, return_exceptions=True)
            if isinstance(outcome, asyncio.CancelledError):
                outcome = await asyncio.wait_for(pull.recv(), 10)
            assert b"%d" % n == outcome


def test_a_dealers_second_reply_is_nobody_elses(pool):
    """A reply that comes after its lessee has left costs the socket; the next lessee reads its own."""
    router = pool.context.socket(zmq.ROUTER)
    router.linger, router.rcvtimeo = 0, 10_000
    router.bind("tcp://127.0.0.1:*")
    config = SocketConfig(SocketType.DEALER, router.last_endpoint.decode())
    try:
        with pool.socket(config) as first:
            first.send(b"alice")
            sender, _ = router.recv_multipart()
            router.send_multipart([sender, b"one for alice"])
            assert b"one for alice" == first.recv()
        router.send_multipart([sender, b"another for alice"])
        eventually(lambda: first.get(zmq.EVENTS) & zmq.POLLIN)
        with pool.socket(config) as second:
            second.send(b"bob")
            sender, _ = router.recv_multipart()
            router.send_multipart([sender, b"one for bob"])
            assert b"one for bob" == second.recv()
    finally:
        router.close()


def test_a_lease_never_ended_is_warned_about(pool):
    """A lease that is dropped without its end gives a ResourceWarning that says where it was checked out."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        with pytest.warns(ResourceWarning, match="test_a_lease_never_ended_is_warned_about"):
            pool.socket(config).__enter__()
        assert 0 == pool.get_stats()["metrics"]["total_connections"]
        assert b"a" == pool.request(config, b"a")


def test_the_place_of_a_lost_lease_goes_to_the_one_who_waits(pool):
    """Who waits for a socket gets one as soon as a lease that nobody has any more is found."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint, max_connections=1)
        lease = pool.socket(config, 5)
        lease.__enter__()
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(pool.request, config, b"a", 20)
            eventually(lambda: next(iter(pool.get_stats()["pools"].values()))["waiting"] == 1)
            with pytest.warns(ResourceWarning, match="was never ended"):
                del lease
            assert b"a" == waiting.result(20)


def test_a_call_may_wait_for_ever(pool):
    """math.inf is a timeout of every call, as it is one of every configuration."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint, max_connections=1)
        assert b"a" == pool.request(config, b"a", timeout=math.inf)
        assert [b"a", b"b"] == pool.request_many(config, [b"a", b"b"], timeout=math.inf)
        with ThreadPoolExecutor(1) as threads:
            with pool.socket(config):
                waiting = threads.submit(pool.request, config, b"b", math.inf)
                eventually(lambda: any(each["waiting"] for each in pool.get_stats()["pools"].values()))
            assert b"b" == waiting.result(20)


@pytest.mark.parametrize("timeout", [math.nan, "5", True])
async def test_a_timeout_that_is_no_number_is_refused(pool, free_endpoint, timeout):
    """Leases and requests refuse it at the call, in threads and in tasks, before a socket is made."""
    config = SocketConfig(SocketType.REQ, free_endpoint)
    words = f"timeout={timeout!r} is not allowed; it must be a number of seconds, or None"
    with pytest.raises(ConfigError, match=words):
        pool.socket(config, timeout=timeout)
    with pytest.raises(ConfigError, match=words):
        pool.request(config, b"x", timeout=timeout)
    with pytest.raises(ConfigError, match=words):
        pool.request_many(config, [b"x"], timeout=timeout)
    for each in (config, dataclasses.replace(config, multiplexed=False)):
        with pytest.raises(ConfigError, match=words):
            await pool.request_async(each, b"x", timeout=timeout)
    assert 0 == pool.get_stats()["metrics"]["pool_misses"]


def test_a_detached_socket_is_the_callers(pool):
    """A detached socket outlives its lease, and the pool makes another one in its place."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint, max_connections=1)
        lease = pool.socket(config)
        with lease:
            mine = lease.detach()
        assert b"a" == pool.request(config, b"a")
        mine.send(b"b")
        assert b"b" == mine.recv()
        mine.close()


def test_a_paused_pool_lets_everyone_wait(pool):
    """While the pool is paused nobody gets a socket; afterwards everyone does."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        pool.pause()
        with pytest.raises(PoolTimeout):
            pool.request(config, b"a", timeout=0.05)
        pool.resume()
        assert b"a" == pool.request(config, b"a")


async def test_a_bound_endpoint_is_waited_for_while_the_pool_is_paused():
    """Who leases one during a pause has it after `resume`, and is never told that somebody else has it."""
    with ZMQPool(ZMQPoolSettings(checkout_timeout=0.1)) as pool:
        config = SocketConfig(SocketType.REP, "tcp://127.0.0.1:*", bind=True)
        pool.pause()
        with pytest.raises(PoolTimeout, match="paused"), pool.socket(config):
            pass
        with pytest.raises(PoolTimeout, match="paused"):
            async with pool.socket(config):
                pass

        with ThreadPoolExecutor(1) as threads:
            lease = pool.socket(config, timeout=20)
            leasing = threads.submit(lease.__enter__)
            await eventually_async(lambda: 1 == pool.get_stats()["pools"][config.label]["waiting"])
            pool.resume()
            leasing.result(20)
        with pytest.raises(EndpointBusy), pool.socket(config):
            pass
        lease.__exit__(None, None, None)


def test_a_timeout_names_what_raises_the_cap_that_was_reached(pool):
    """A configuration's own cap is told from the pool's, and for the one socket of a PUSH there is nothing to raise."""
    own, one = (
        SocketConfig(SocketType.REQ, "inproc://nobody", max_connections=1),
        SocketConfig(SocketType.PUSH, "inproc://nobody", linger=0.01),
    )
    with pool.socket(own), pytest.raises(PoolTimeout, match=r"raise max_connections of its SocketConfig$"):
        with pool.socket(own, timeout=0.01):
            pass
    with pool.socket(one), pytest.raises(PoolTimeout, match=r"Give connections back sooner$"):
        with pool.socket(one, timeout=0.01):
            pass


def test_1100_leases_are_wanted_and_50_exist(pool):
    """1,100 threads that each want a socket share the 50 that there may be; each gets its own reply."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint, max_connections=50, receive_timeout=60)
        barrier = threading.Barrier(1100)

        def ask(n):
            barrier.wait(60)
            return pool.request(config, b"%d" % n, timeout=60)

        with ThreadPoolExecutor(1100) as threads:
            replies = list(threads.map(ask, range(1100)))
        assert [b"%d" % n for n in range(1100)] == replies
        assert pool.get_stats()["metrics"]["total_connections"] <= 50


def test_all_keys_together_have_a_cap():
    """Sockets of all configurations together stay within the total cap; idle ones make room."""
    with ZMQPool(ZMQPoolSettings(max_total_connections=2)) as pool, replier() as endpoint:
        configs = [SocketConfig(SocketType.REQ, endpoint, send_timeout=1 + n) for n in range(5)]
        for config in configs * 2:
            assert b"a" == pool.request(config, b"a")
            assert pool.get_stats()["metrics"]["total_connections"] <= 2
        with pool.socket(configs[0]), pool.socket(configs[1]):
            with (
                pytest.raises(PoolTimeout, match=r"all 2 connections.*raise ZMQ_POOL_MAX_TOTAL_CONNECTIONS"),
                pool.socket(configs[2], timeout=0.05),
            ):
                pass


def test_stopping_with_a_lease_out_ends_in_time_and_names_its_holder():
    """`stop` ends within its deadline, names who still holds, and ends a blocked receive with an error."""
    pool = ZMQPool(ZMQPoolSettings())
    started, ended = threading.Event(), threading.Event()

    def hold():
        with pool.socket(config) as pull:
            started.set()
            with pytest.raises(zmq.ContextTerminated):
                pull.recv()
        ended.set()

    config = SocketConfig(SocketType.PULL, "tcp://127.0.0.1:*", bind=True)
    thread = threading.Thread(target=hold)
    thread.start()
    assert started.wait(10)
    begin = time.monotonic()
    with pytest.raises(LeaseLeaked, match="in hold"):
        pool.stop(timeout=0.2)
    assert time.monotonic() - begin < 5
    assert ended.wait(10)
    thread.join(10)


def test_options_are_part_of_the_key(pool):
    """Two configurations that differ in an option never share a socket; equal ones do."""
    with replier() as endpoint:
        plain = SocketConfig(SocketType.REQ, endpoint)
        tuned = SocketConfig(SocketType.REQ, endpoint, options={"TCP_KEEPALIVE": 1})
        assert plain != tuned
        assert tuned == SocketConfig("req", endpoint, options={zmq.TCP_KEEPALIVE: 1})
        with pool.socket(plain) as one, pool.socket(tuned) as other:
            assert one is not other
            assert 1 == other.tcp_keepalive


def test_inproc_endpoints_meet():
    """inproc endpoints of two pools meet, because the process has one context."""
    with ZMQPool() as one, ZMQPool() as two:
        endpoint = "inproc://meeting"
        with one.socket(SocketConfig(SocketType.PULL, endpoint, bind=True, receive_timeout=10)) as pull:
            two.push(SocketConfig(SocketType.PUSH, endpoint), b"met")
            assert b"met" == pull.recv()
        assert one.context is two.context


def test_the_last_lessees_subscription_reaches_nobody(pool, free_endpoint):
    """The next lessee of a SUB gets neither the last one's topics nor its messages."""
    publish = SocketConfig(SocketType.PUB, free_endpoint, bind=True, subscriber_wait=10)
    config = SocketConfig(SocketType.SUB, free_endpoint, receive_timeout=10)
    with pool.socket(config) as first:
        first.subscribe(b"")
        pool.publish(publish, b"for the first")
        pool.publish(publish, b"also")
        assert b"for the first" == first.recv()
    with pool.socket(config) as second:
        second.subscribe(b"z")
        eventually(lambda: (pool.publish(publish, b"z"), second.poll(10))[1])
        assert b"z" == second.recv()
    assert first.closed


def test_an_endpoint_kept_bound_is_given_up_to_another_configuration(pool, free_endpoint):
    """A bound endpoint that nobody uses can be bound by another configuration; one in use cannot."""
    first = SocketConfig(SocketType.REP, free_endpoint, bind=True)
    second = SocketConfig(SocketType.ROUTER, free_endpoint, bind=True)
    with pool.socket(first):
        with pytest.raises(EndpointBusy), pool.socket(second):
            pass
    with pool.socket(second) as router:
        assert zmq.ROUTER == router.type


def test_an_ipc_path_is_never_taken_away(tmp_path):
    """A path that one pool has bound cannot be bound by another; when it is free again, it can."""
    config = SocketConfig(SocketType.REP, f"ipc://{tmp_path}/agent", bind=True)
    client = SocketConfig(SocketType.REQ, f"ipc://{tmp_path}/agent")
    with ZMQPool() as two:
        with ZMQPool() as one, one.socket(config) as server:
            with pytest.raises(EndpointBusy), two.socket(config):
                pass
            with one.socket(client) as asking:
                asking.send(b"still mine")
                assert b"still mine" == server.recv()
                server.send(b"")
                asking.recv()
        for _ in range(20):
            with two.socket(config) as server, two.socket(client) as asking:
                asking.send(b"mine now")
                server.recv()  # and no answer, so that it is bound anew


@pytest.mark.parametrize("kind", [k for k in SocketType if k is not SocketType.REQ])
def test_whatever_binds_has_one_owner(pool, free_endpoint, kind):
    """Every type that binds refuses a second lessee, and serves the next one after the first has left."""
    config = SocketConfig(kind, free_endpoint, bind=True, subscriber_wait=0)
    for _ in range(3):
        with pool.socket(config):
            with pytest.raises(EndpointBusy), pool.socket(config):
                pass


async def test_ten_tasks_have_ten_sockets(pool):
    """Concurrent asyncio leases never share a socket, and each gets its own reply."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint, max_connections=10)
        all_leased = asyncio.Barrier(10)

        async def ask(n):
            async with pool.socket(config) as socket:
                await all_leased.wait()
                await socket.send(b"%d" % n)
                return await socket.recv()

        assert [b"%d" % n for n in range(10)] == await asyncio.gather(*(ask(n) for n in range(10)))
        assert 10 == pool.get_stats()["metrics"]["total_connections"]


def test_a_dealer_with_a_reply_outstanding_is_given_up(pool):
    """A DEALER goes on only if as many messages came in as went out."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.DEALER, endpoint)
        with pool.socket(config) as first:
            for body in (b"a", b"b"):
                first.send_multipart([b"", body])
            assert [b"", b"a"] == first.recv_multipart()
        assert first.closed
        with pool.socket(config) as second:
            second.send(b"", zmq.SNDMORE)
            second.send(b"c")
            assert [b"", b"c"] == [second.recv(), second.recv()]
        with pool.socket(config) as third:
            assert second is third


def test_waiting_has_limits_by_default():
    """A REQ waits ten seconds for a reply and five for a connection; who serves waits for ever."""
    asking = SocketConfig(SocketType.REQ, "tcp://127.0.0.1:1").libzmq_options()
    assert (5000, 10_000, 0, 1) == tuple(asking[n] for n in ("SNDTIMEO", "RCVTIMEO", "LINGER", "IMMEDIATE"))
    assert -1 == SocketConfig(SocketType.PULL, "tcp://127.0.0.1:1", bind=True).libzmq_options()["RCVTIMEO"]


def test_idle_sockets_are_closed_and_bound_ones_are_not(free_endpoint):
    """Housekeeping closes a REQ that was idle too long; a bound PULL, in which messages may wait, it keeps."""
    with ZMQPool(ZMQPoolSettings(max_idle_time=0.01)) as pool, replier() as endpoint:
        asking = SocketConfig(SocketType.REQ, endpoint)
        bound = SocketConfig(SocketType.PULL, free_endpoint, bind=True)
        pool.request(asking, b"a")
        with pool.socket(bound):
            pass

        def swept():
            pool.sweep()
            return 0 == pool.get_stats()["pools"][asking.label]["total"]

        eventually(swept)
        assert 1 == pool.get_stats()["pools"][bound.label]["total"]


@pytest.mark.parametrize("bind", [True, False])
def test_messages_lost_with_a_pull_are_counted(pool, free_endpoint, caplog, bind):
    """A PULL in which messages wait when the pool stops leaves a warning with their number, an empty one none."""
    context = zmq.Context()
    push = context.socket(zmq.PUSH)
    push.linger = 0
    (push.connect if bind else push.bind)(free_endpoint)
    config = SocketConfig(SocketType.PULL, free_endpoint, bind=bind, receive_timeout=20)
    try:
        with pool.socket(config) as pull:
            push.send(b"read")
            push.send_multipart([b"not", b"read"])
            assert b"read" == pull.recv()
            assert pull.poll(20_000)
        pool.stop()
        assert "at least 1 received messages" in caplog.text
        caplog.clear()
        pool.start()
        with pool.socket(config):
            pass
        pool.stop()
        assert "" == caplog.text
    finally:
        push.close()
        context.term()


def test_the_context_has_room_for_many_sockets(pool):
    """The context's limit of sockets follows the process's descriptors instead of libzmq's 1023."""
    assert socket_limit() == pool.context.get(zmq.MAX_SOCKETS)


def test_a_timeout_names_the_callers_of_the_task_that_holds(pool, free_endpoint):
    """The error tells where the longest lease was checked out and by which coroutines, though the task waits now."""
    config = SocketConfig(SocketType.REQ, free_endpoint, max_connections=1)

    async def handle_message(held: asyncio.Event, enough: asyncio.Event) -> None:
        async with pool.socket(config):
            held.set()
            await enough.wait()

    async def run_agent(held: asyncio.Event, enough: asyncio.Event) -> None:
        await handle_message(held, enough)

    async def main() -> str:
        held, enough = asyncio.Event(), asyncio.Event()
        agent = asyncio.create_task(run_agent(held, enough))
        await held.wait()
        with pytest.raises(PoolTimeout) as refused:
            async with pool.socket(config, timeout=0.01):
                pass
        enough.set()
        await agent
        return str(refused.value)

    assert re.search(r"in handle_message <- test_leases\.py:\d+ in run_agent", asyncio.run(main()))


def test_a_leased_sockets_errors_say_the_same_in_another_process(pool, free_endpoint):
    """The errors that are both the pool's and zmq.Again keep their message and their number when they are pickled."""
    with pool.socket(SocketConfig(SocketType.REQ, free_endpoint, send_timeout=0.01)) as socket:
        with pytest.raises(NotSent) as not_sent:
            socket.send(b"x")
    for error in (not_sent.value, ReplyTimedOut("no reply"), ReplyLost(free_endpoint, "it died")):
        moved = pickle.loads(pickle.dumps(error))
        assert (str(error), zmq.EAGAIN, error.strerror) == (str(moved), moved.errno, moved.strerror)
        assert isinstance(moved, zmq.Again)


@pytest.mark.parametrize("timeout", [None, 0.05])
def test_a_bind_beyond_the_cap_over_all_keys_names_that_cap(free_endpoint, timeout):
    """A bound endpoint that nobody has leased is no EndpointBusy while other leases take up the cap over all keys."""
    bound = SocketConfig(SocketType.REP, "tcp://127.0.0.1:*", bind=True)
    with ZMQPool(ZMQPoolSettings(max_total_connections=1)) as pool:
        with pool.socket(SocketConfig(SocketType.REQ, free_endpoint)):
            with pytest.raises(PoolTimeout, match="ZMQ_POOL_MAX_TOTAL_CONNECTIONS") as refused:
                pool.socket(bound, timeout).__enter__()
            assert (1, 0) == (refused.value.total, refused.value.in_use)
        with pool.socket(bound):
            with pytest.raises(EndpointBusy, match="leased already"), pool.socket(bound, timeout):
                pass


async def test_a_bind_in_asyncio_beyond_the_cap_over_all_keys_names_that_cap(free_endpoint):
    """The same in asyncio."""
    bound = SocketConfig(SocketType.REP, "tcp://127.0.0.1:*", bind=True)
    async with ZMQPool(ZMQPoolSettings(max_total_connections=1)) as pool:
        async with pool.socket(SocketConfig(SocketType.REQ, free_endpoint)):
            with pytest.raises(PoolTimeout, match="ZMQ_POOL_MAX_TOTAL_CONNECTIONS"):
                async with pool.socket(bound):
                    pass
        async with pool.socket(bound):
            with pytest.raises(EndpointBusy, match="leased already"):
                async with pool.socket(bound):
                    pass
