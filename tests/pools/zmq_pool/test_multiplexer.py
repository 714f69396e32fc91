"""asyncio requests through one connection: right replies, right errors, nothing lost."""

import asyncio
import math
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import ConnectionLost, LeaseLeaked, NoReply, NotSent, PoolClosed, PoolTimeout, UnexpectedReply
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from app.pools.zmq_pool.connection import WINDOW
from tests.support.echo import replier
from tests.support.echo_process import echo_process
from tests.support.waiting import eventually, eventually_async


@pytest.fixture
async def pool():
    async with ZMQPool(ZMQPoolSettings()) as pool:
        yield pool


def figures(pool, config):
    return pool.get_stats()["pools"].get(f"{config.label} (asyncio)", {"in_flight": 0, "total": 0, "waiting": 0})


@pytest.mark.parametrize("kind", ["REP", "ROUTER"])
async def test_3000_at_once_lose_no_reply(pool, kind):
    """A default server gets 3000 requests at once, repeatedly; every reply comes, each to its request."""
    with echo_process(kind) as server:
        config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=60)
        for _ in range(3):
            replies = await asyncio.gather(*(pool.request_async(config, b"%d" % n) for n in range(3000)))
            assert [b"%d" % n for n in range(3000)] == replies
        assert 1 == figures(pool, config)["total"]


async def test_a_broker_in_between_changes_nothing(pool):
    """Requests pass a ROUTER-DEALER broker to several REP workers and come back to their callers."""
    context = zmq.Context()
    front, back, stop, told = (context.socket(kind) for kind in (zmq.ROUTER, zmq.DEALER, zmq.PAIR, zmq.PAIR))
    front.bind("tcp://127.0.0.1:*")
    back.bind("tcp://127.0.0.1:*")
    told.bind("inproc://stop")
    stop.connect("inproc://stop")
    endpoint, inner = front.last_endpoint.decode(), back.last_endpoint.decode()
    broker = threading.Thread(target=zmq.proxy_steerable, args=(front, back, None, told), daemon=True)
    broker.start()

    async def work(worker):
        while True:
            await worker.send(await worker.recv())

    served = SocketConfig(SocketType.REP, inner)
    async with pool.socket(served) as one, pool.socket(served) as two:
        workers = [asyncio.create_task(work(worker)) for worker in (one, two)]
        config = SocketConfig(SocketType.REQ, endpoint)
        replies = await asyncio.gather(*(pool.request_async(config, b"%d" % n) for n in range(200)))
        assert [b"%d" % n for n in range(200)] == replies
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    stop.send(b"TERMINATE")
    await asyncio.to_thread(broker.join, 10)
    for socket in (front, back, stop, told):
        socket.close(0)
    context.term()


async def test_cancelled_and_expired_requests_confuse_no_other(pool):
    """While many requests are cancelled or expire, every other one gets its own reply."""
    with echo_process("ROUTER") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=30)
        choose = random.Random(1)
        for _ in range(5):
            good = [asyncio.create_task(pool.request_async(config, b"%d" % n)) for n in range(300)]
            cancelled = [asyncio.create_task(pool.request_async(config, b"c%d" % n)) for n in range(100)]
            silent = [asyncio.create_task(pool.request_async(config, b"silence", timeout=0.05)) for n in range(20)]
            for task in cancelled:
                asyncio.get_running_loop().call_later(choose.random() * 0.01, task.cancel)
            assert [b"%d" % n for n in range(300)] == await asyncio.gather(*good)
            # On a busy machine some expire before there is room for them in the window.
            assert all(isinstance(e, NoReply | NotSent) for e in await asyncio.gather(*silent, return_exceptions=True))
            await asyncio.gather(*cancelled, return_exceptions=True)
        assert 0 == figures(pool, config)["in_flight"]


async def test_a_server_that_never_answers_some_does_not_fill_the_window(pool):
    """After 1000 requests without a reply the endpoint still serves: their connection is replaced."""
    with echo_process("ROUTER") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint)
        unanswered = 0
        for _ in range(50):
            lost = (pool.request_async(config, b"silence", timeout=0.1) for _ in range(200))
            ends = await asyncio.gather(*lost, return_exceptions=True)
            # On a busy machine a new connection is not there in time for all.
            assert all(isinstance(each, NoReply | NotSent) for each in ends)
            unanswered += sum(isinstance(each, NoReply) for each in ends)
            if unanswered >= 1000:
                break
        assert unanswered >= 1000
        assert b"ok" == await pool.request_async(config, b"ok")
        await eventually_async(lambda: figures(pool, config)["total"] == 1)
        burst = await asyncio.gather(*(pool.request_async(config, b"%d" % n) for n in range(1000)))
        assert [b"%d" % n for n in range(1000)] == burst


async def test_a_server_that_never_answers_costs_five_connections_at_most(pool):
    """Requests without replies, patient and impatient, end as not sent when five windows are full."""
    with echo_process("ROUTER") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint)
        patient = []
        for _ in range(30):
            patient.append(asyncio.ensure_future(pool.request_async(config, b"silence", timeout=60)))
            lost = (pool.request_async(config, b"silence", timeout=0.1) for _ in range(400))
            ends = await asyncio.gather(*lost, return_exceptions=True)
            assert all(isinstance(each, NoReply | NotSent) for each in ends)
            if figures(pool, config)["total"] == 5 and all("too many are unanswered" in str(each) for each in ends):
                break
        else:
            pytest.fail("the windows were never full")
        there = figures(pool, config)
        assert (5, 5) == (there["total"], there["capacity"])
        assert there["total"] == there["active"] + there["idle"]
        for each in patient:
            each.cancel()
        await asyncio.gather(*patient, return_exceptions=True)
        assert b"ok" == await pool.request_async(config, b"ok")
        await eventually_async(lambda: figures(pool, config)["total"] == 1)


@pytest.mark.parametrize("receive_timeout", [10, math.inf])
async def test_cancelled_requests_give_back_their_places(pool, receive_timeout):
    """After 1000 cancelled requests without a reply the next one is answered at once, and none counts as under way."""
    with echo_process("ROUTER") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=receive_timeout)
        assert b"warm" == await pool.request_async(config, b"warm")
        for _ in range(5):
            asking = [asyncio.create_task(pool.request_async(config, b"silence")) for _ in range(200)]
            await eventually_async(lambda: figures(pool, config)["in_flight"] == 200)
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)
            assert 0 == figures(pool, config)["in_flight"]
        assert b"ok" == await asyncio.wait_for(pool.request_async(config, b"ok"), 5)
        await eventually_async(lambda: figures(pool, config)["total"] == 1)


async def test_a_request_that_waits_for_room_gets_that_of_cancelled_ones(pool):
    """A request queued behind a full window is sent when those in it are cancelled, though none was answered."""
    with echo_process("ROUTER") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=math.inf)
        asking = [asyncio.create_task(pool.request_async(config, b"silence")) for _ in range(WINDOW)]
        await eventually_async(lambda: figures(pool, config)["in_flight"] == WINDOW)
        waiting = asyncio.create_task(pool.request_async(config, b"waited"))
        await eventually_async(lambda: figures(pool, config)["waiting"] == 1)
        for task in asking:
            task.cancel()
        assert b"waited" == await asyncio.wait_for(waiting, 10)


async def test_late_replies_to_cancelled_requests_reach_nobody(pool):
    """What a slow server answers to cancelled requests is thrown away; those asked meanwhile get their own replies."""
    go_on = threading.Event()

    def answer_late(frames):
        go_on.wait(10)
        return frames

    with replier(answer_late) as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        cancelled = [asyncio.create_task(pool.request_async(config, b"cancelled")) for _ in range(150)]
        await eventually_async(lambda: figures(pool, config)["in_flight"] == 150)
        for task in cancelled:
            task.cancel()
        patient = [asyncio.create_task(pool.request_async(config, b"%d" % n)) for n in range(150)]
        await eventually_async(lambda: figures(pool, config)["in_flight"] == 150)
        go_on.set()
        assert [b"%d" % n for n in range(150)] == await asyncio.gather(*patient)
        assert 150 == figures(pool, config)["stale"]
        assert 1 == figures(pool, config)["connections"]


async def test_a_queued_request_that_is_cancelled_leaves_the_queue(pool, free_endpoint):
    """Cancelled before it was sent, a request makes room in the backlog, and is not executed when a peer comes."""
    config = SocketConfig(SocketType.REQ, free_endpoint, backlog=11)
    first = asyncio.create_task(pool.request_async(config, b"first"))
    for _ in range(3):
        cancelled = [asyncio.create_task(pool.request_async(config, b"cancelled")) for _ in range(10)]
        await eventually_async(lambda: figures(pool, config)["waiting"] == 11)
        for task in cancelled:
            task.cancel()
        await asyncio.wait(cancelled)
        assert 1 == figures(pool, config)["waiting"]
    seen = []
    with replier(lambda frames: seen.append(frames) or frames, free_endpoint):
        assert b"first" == await first
    assert [[b"first"]] == seen


async def test_without_a_peer_requests_are_not_sent(pool, free_endpoint):
    """Requests to nobody fail as safe to repeat, and none is executed when somebody comes."""
    config = SocketConfig(SocketType.REQ, free_endpoint)
    tasks = [pool.request_async(config, b"%d" % n, timeout=0.1) for n in range(100)]
    assert all(isinstance(e, NotSent) for e in await asyncio.gather(*tasks, return_exceptions=True))
    seen = []
    with replier(lambda frames: seen.append(frames) or frames, free_endpoint):
        assert b"now" == await pool.request_async(config, b"now")
    assert [[b"now"]] == seen


async def test_a_full_queue_refuses(pool, free_endpoint):
    """More requests than the backlog holds are refused at once, as safe to repeat."""
    config = SocketConfig(SocketType.REQ, free_endpoint, backlog=10)
    tasks = [asyncio.create_task(pool.request_async(config, b"x", timeout=0.2)) for _ in range(11)]
    with pytest.raises(NotSent, match="wait to be sent"):
        await tasks[10]
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_killed_server_fails_what_is_in_flight_at_once(pool):
    """When the server dies, requests on their way fail as maybe executed, long before their time limit."""
    with echo_process("ROUTER") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=60)
        await pool.request_async(config, b"warm")
        tasks = [asyncio.create_task(pool.request_async(config, b"silence")) for _ in range(50)]
        await eventually_async(lambda: figures(pool, config)["in_flight"] == 50)
        server.kill()
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert all(isinstance(e, ConnectionLost) and e.maybe_executed for e in outcomes)
        server.start()
        assert b"again" == await pool.request_async(config, b"again")


async def test_a_connection_is_waited_for_as_long_as_a_send_may_wait(pool, free_endpoint):
    """Where nobody listens a request ends with the limit of a send, given as seconds or as libzmq's option."""
    for limited in ({"send_timeout": 0.1}, {"options": {"SNDTIMEO": 100}}):
        config = SocketConfig(SocketType.REQ, free_endpoint, receive_timeout=600, **limited)
        for timeout in (None, 600):
            with pytest.raises(NotSent, match=r"0\.1 s: nobody listens there"):
                await asyncio.wait_for(pool.request_async(config, b"anyone?", timeout), 20)


async def test_who_waits_for_room_beside_others_has_the_time_of_a_reply(pool):
    """A send's limit ends no request that waits because 400 others are under way."""
    with echo_process("REP") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=60, send_timeout=0.1, heartbeat=60)
        assert b"warm" == await pool.request_async(config, b"warm", timeout=60)
        server.freeze()
        asking = [asyncio.create_task(pool.request_async(config, b"%d" % n)) for n in range(WINDOW + 50)]
        await eventually_async(lambda: figures(pool, config)["waiting"] == 50)
        assert not (await asyncio.wait(asking, timeout=0.5))[0]
        server.thaw()
        assert [b"%d" % n for n in range(WINDOW + 50)] == await asyncio.gather(*asking)


async def test_libzmqs_option_limits_the_wait_for_a_reply(pool):
    """A reply is waited for as long as ``RCVTIMEO`` among the options says."""
    with echo_process("ROUTER") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=600, options={"RCVTIMEO": 200})
        with pytest.raises(NoReply):
            await asyncio.wait_for(pool.request_async(config, b"silence"), 20)


async def test_a_connection_past_its_lifetime_is_replaced():
    """Housekeeping has requests sent through another one, again and again, and breaks off nothing."""
    async with ZMQPool(ZMQPoolSettings(max_lifetime=0.1)) as pool:
        with echo_process("ROUTER") as server:
            config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=60)
            assert b"warm" == await pool.request_async(config, b"warm")
            waiting = asyncio.create_task(pool.request_async(config, b"silence"))

            async def renewed(times):
                while figures(pool, config)["connections"] <= times:
                    pool.sweep()
                    assert b"ok" == await pool.request_async(config, b"ok")

            await asyncio.wait_for(renewed(5), 60)
            assert not waiting.done()
            assert 0 == figures(pool, config)["lost"]
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await asyncio.wait_for(renewed(10), 60)
            assert figures(pool, config)["total"] <= 2


async def test_a_frozen_server_is_noticed_by_its_heartbeat(pool):
    """When the server stops executing, what is in flight fails within the heartbeat's time."""
    with echo_process("REP") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=60, heartbeat=0.1)
        await pool.request_async(config, b"warm")
        server.freeze()
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(pool.request_async(config, b"frozen"), 10)
        server.thaw()
        assert b"again" == await pool.request_async(config, b"again")


async def test_a_server_frozen_for_a_moment_answers_all(pool):
    """A stop too short for the heartbeat loses nothing: every request gets its own reply when the server goes on."""
    with echo_process("REP") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=60, heartbeat=60)
        assert b"warm" == await pool.request_async(config, b"warm")
        for _ in range(3):
            server.freeze()
            asking = [asyncio.create_task(pool.request_async(config, b"%d" % n)) for n in range(1000)]
            await eventually_async(lambda: figures(pool, config)["in_flight"] == WINDOW)
            server.thaw()
            assert [b"%d" % n for n in range(1000)] == await asyncio.wait_for(asyncio.gather(*asking), 30)
        assert 1 == figures(pool, config)["connections"]


async def test_a_server_frozen_under_load_gives_no_stranger_a_reply(pool):
    """Of 1000 requests to a server that stops for long, those sent fail as maybe executed, the others are answered."""
    with echo_process("REP") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint, send_timeout=60, receive_timeout=60, heartbeat=0.2)
        assert b"warm" == await pool.request_async(config, b"warm")
        for _ in range(3):
            server.freeze()
            asking = [asyncio.create_task(pool.request_async(config, b"%d" % n)) for n in range(1000)]
            await eventually_async(lambda asking=asking: sum(task.done() for task in asking) >= WINDOW)
            assert 1000 - WINDOW == figures(pool, config)["waiting"]
            server.thaw()
            outcomes = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 30)
            lost = [isinstance(outcome, ConnectionLost) for outcome in outcomes]
            assert all(lost[:WINDOW])
            assert not all(lost[WINDOW:])  # some may be: on a busy machine a heartbeat can be late again
            for n, outcome in enumerate(outcomes):
                assert outcome.maybe_executed if lost[n] else outcome == b"%d" % n


async def test_a_connection_that_still_replies_is_not_given_up(pool, monkeypatch):
    """What watches the endpoint may lose its own connection, or learn of it late, while this one's replies come."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        assert b"warm" == await pool.request_async(config, b"warm")
        lost_at = time.monotonic()
        looks = []

        def loss(since):
            looks.append(since)
            return "the connection was lost" if lost_at >= since else ""

        monkeypatch.setattr(pool._multiplexers[asyncio.get_running_loop()][config], "_loss", loss)

        async def ask_on(name):
            while len(looks) < 8:
                assert name == await pool.request_async(config, name)

        await asyncio.wait_for(asyncio.gather(*(ask_on(b"%d" % n) for n in range(20))), 30)


async def test_a_reply_of_several_frames_is_an_error(pool):
    """A request whose reply has two frames fails clearly, and the next one is not affected."""
    with replier(lambda frames: [b"a", b"b"] if frames[0] == b"two" else frames) as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        two, one = await asyncio.gather(
            pool.request_async(config, b"two"), pool.request_async(config, b"one"), return_exceptions=True
        )
        assert isinstance(two, UnexpectedReply)
        assert b"one" == one


@pytest.mark.parametrize("end", [[b""], [b"body"]])
async def test_a_reply_with_half_an_envelope_takes_nothing_of_the_next_one(pool, end):
    """A server that leaves frames out fails its own request clearly; the reply after it reaches the right caller."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger, router.rcvtimeo = 0, 20_000
    config = SocketConfig(SocketType.REQ, f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")

    def serve():
        asked = [router.recv_multipart() for _ in range(2)]
        router.send_multipart([*asked[0][:2], *end])
        router.send_multipart(asked[1])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        asking = (pool.request_async(config, body, timeout=20) for body in (b"first", b"second"))
        first, second = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(first, UnexpectedReply)
        assert "envelope" in str(first)
        assert b"second" == second
    finally:
        thread.join()
        context.destroy(0)


async def test_a_server_that_keeps_the_envelope_needs_a_req_per_request(pool):
    """With multiplexed=False each request leases a REQ, which suits a ROUTER that expects exactly three frames."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind("tcp://127.0.0.1:*")

    def serve():
        for _ in range(20):
            sender, _, body = router.recv_multipart()
            router.send_multipart([sender, b"", body])

    thread = threading.Thread(target=serve)
    thread.start()
    config = SocketConfig(SocketType.REQ, router.last_endpoint.decode(), multiplexed=False)
    replies = await asyncio.gather(*(pool.request_async(config, b"%d" % n) for n in range(20)))
    assert [b"%d" % n for n in range(20)] == replies
    await asyncio.to_thread(thread.join, 10)
    router.close(0)
    context.term()


def test_each_asyncio_run_gets_a_connection_of_its_own():
    """The pool works across asyncio.run calls and closes what the ended loops left."""
    with ZMQPool() as pool, replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        for n in range(5):
            assert b"%d" % n == asyncio.run(pool.request_async(config, b"%d" % n))
        pool.sweep()
        assert 0 == pool.get_stats()["metrics"]["total_connections"]


def test_several_loops_in_several_threads_share_the_pool():
    """Loops in four threads ask through one pool at once, and each gets its own replies."""
    with ZMQPool() as pool, echo_process() as server:
        config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=60)

        async def ask(name):
            bodies = [b"%d.%d" % (name, n) for n in range(500)]
            assert bodies == await asyncio.gather(*(pool.request_async(config, body) for body in bodies))

        threads = [threading.Thread(target=lambda name=name: asyncio.run(ask(name))) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)


def test_it_works_under_uvloop():
    """The multiplexer and the asyncio sockets work on another event loop as well."""
    uvloop = pytest.importorskip("uvloop")
    with ZMQPool() as pool, echo_process() as server:
        config = SocketConfig(SocketType.REQ, server.endpoint)

        async def ask():
            async with pool.socket(config) as socket:
                await socket.send(b"leased")
                assert b"leased" == await socket.recv()
            return await asyncio.gather(*(pool.request_async(config, b"%d" % n) for n in range(500)))

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            assert [b"%d" % n for n in range(500)] == runner.run(ask())


async def test_stopping_waits_for_replies_and_then_refuses():
    """`stop_async` lets requests on their way end, and fails those that do not, naming them."""
    with echo_process("ROUTER") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint)
        pool = ZMQPool()
        asking = [asyncio.create_task(pool.request_async(config, b"%d" % n)) for n in range(100)]
        await asyncio.sleep(0)
        await pool.stop_async()
        assert [b"%d" % n for n in range(100)] == await asyncio.gather(*asking)
        with pytest.raises(PoolClosed):
            await pool.request_async(config, b"late")
        pool.start()
        silent = asyncio.create_task(pool.request_async(config, b"silence"))
        await eventually_async(lambda: figures(pool, config)["in_flight"] == 1)
        with pytest.raises(Exception, match="1 asyncio requests without their reply"):
            await pool.stop_async(timeout=0.1)
        with pytest.raises(PoolClosed):
            await silent


def test_a_first_request_beside_a_stop_is_served_or_refused():
    """A loop's first request while the pool stops gets its reply or PoolClosed, at once, and the pool starts again."""
    choose = random.Random(1)
    pool = ZMQPool()
    with echo_process() as server:
        config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=60)

        async def ask():
            ready.wait(10)
            try:
                return await pool.request_async(config, b"served")
            except PoolClosed:
                return b"refused"

        for _ in range(60):
            pool.start()
            ready = threading.Barrier(2)
            with ThreadPoolExecutor(1) as thread:
                asking = thread.submit(asyncio.run, ask())
                ready.wait(10)
                time.sleep(choose.random() * 0.002)  # the stop meets the request at any point
                pool.stop()
                assert asking.result(20) in (b"served", b"refused")


async def test_a_paused_pool_holds_requests_back(pool):
    """While the pool is paused a request waits, as a lease does, up to its timeout; on `resume` it is sent."""
    seen = []
    with replier(lambda frames: seen.append(frames[0]) or frames) as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint)
        assert b"before" == await pool.request_async(config, b"before")
        for _ in range(20):
            pool.pause()
            with pytest.raises(PoolTimeout):
                await pool.request_async(config, b"too long", timeout=0.01)
            waiting = [asyncio.create_task(pool.request_async(config, b"held back", timeout=60)) for _ in range(3)]
            other = asyncio.create_task(asyncio.to_thread(asyncio.run, pool.request_async(config, b"held back")))
            await eventually_async(lambda: pool._gate.waiting == 4)
            resuming = asyncio.create_task(asyncio.to_thread(pool.resume))
            assert [b"held back"] * 4 == await asyncio.wait_for(asyncio.gather(*waiting, other), 10)
            await resuming
        assert 1 + 20 * 4 == len(seen)


async def test_a_request_that_leases_waits_for_its_socket_up_to_its_timeout(pool):
    """Not multiplexed, a request is PoolTimeout while the pool is paused or its sockets are in use, later NoReply."""
    with echo_process("ROUTER") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint, multiplexed=False, max_connections=1)
        assert b"warm" == await pool.request_async(config, b"warm", timeout=10)
        pool.pause()
        with pytest.raises(PoolTimeout):
            await pool.request_async(config, b"x", timeout=0.05)
        pool.resume()
        with pool.socket(config), pytest.raises(PoolTimeout, match="1 of 1 in use"):
            await pool.request_async(config, b"x", timeout=0.05)
        with pytest.raises(NoReply):
            await pool.request_async(config, b"silence", timeout=0.5)
        assert b"next" == await pool.request_async(config, b"next", timeout=10)


async def test_requests_held_back_by_a_pause_have_the_checkouts_time_limit_and_end_with_a_stop():
    """Without a timeout a request waits as long for `resume` as a checkout may, and a stop is PoolClosed to it."""
    async with ZMQPool(ZMQPoolSettings(checkout_timeout=0.05)) as pool:
        config = SocketConfig(SocketType.REQ, "tcp://127.0.0.1:9", receive_timeout=60)
        pool.pause()
        with pytest.raises(PoolTimeout):
            await asyncio.wait_for(pool.request_async(config, b"x"), 10)
        waiting = asyncio.create_task(pool.request_async(config, b"x", timeout=60))
        await eventually_async(lambda: pool._gate.waiting == 1)
        await pool.stop_async()
        with pytest.raises(PoolClosed):
            await asyncio.wait_for(waiting, 10)


class Loop(asyncio.SelectorEventLoop):
    """Says when another thread has given it something to do."""

    def __init__(self):
        super().__init__()
        self.told = threading.Event()

    def call_soon_threadsafe(self, *args, **kwargs):
        super().call_soon_threadsafe(*args, **kwargs)
        self.told.set()


def test_a_loop_that_ends_beside_a_stop_leaves_nothing_open(caplog):
    """A loop that ends before it has closed what a stop told it to close leaves that to the stop."""
    loop = Loop()

    def end():
        loop.told.clear()
        blocked.set()
        loop.told.wait(10)
        loop.stop()  # what it was told meanwhile it does not come to any more

    blocked = threading.Event()
    pool = ZMQPool()
    with replier() as endpoint, ThreadPoolExecutor(1) as thread:
        loop.run_until_complete(pool.request_async(SocketConfig(SocketType.REQ, endpoint), b"x"))
        stopping = thread.submit(lambda: blocked.wait(10) and pool.stop(timeout=2))
        loop.call_soon(end)
        loop.run_forever()
        loop.close()
        stopping.result(20)
    assert not caplog.records


def test_a_loop_that_stops_beside_a_stop_leaves_nothing_open(caplog):
    """What a loop that does not run any more cannot close is closed by the stop, and its requests fail."""
    loop = asyncio.new_event_loop()
    pool = ZMQPool()
    with echo_process("ROUTER") as server, ThreadPoolExecutor(1) as thread:
        config = SocketConfig(SocketType.REQ, server.endpoint)
        asking = loop.create_task(pool.request_async(config, b"silence"))

        async def ask():
            await eventually_async(lambda: pool.closed)

        running = thread.submit(loop.run_until_complete, ask())
        eventually(lambda: figures(pool, config)["in_flight"] == 1)
        with pytest.raises(LeaseLeaked, match="1 asyncio requests without their reply"):
            pool.stop(timeout=1)
        running.result(20)
        with pytest.raises(PoolClosed):
            loop.run_until_complete(asking)
        loop.close()
    assert not caplog.records
