"""A process that has no file descriptors left, for a moment or for longer."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import OutOfDescriptors
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool, attempts
from app.pools.zmq_pool.attendant import Attendant
from tests.support.descriptors import shortage
from tests.support.echo_process import echo_process
from tests.support.waiting import eventually


@pytest.fixture
def pool():
    with ZMQPool(ZMQPoolSettings()) as pool:
        yield pool


@pytest.fixture
def impatient(monkeypatch):
    """Descriptors are waited for only for a moment."""
    monkeypatch.setattr(attempts, "_REAPED_WITHIN", 0.3)


@pytest.fixture
def sink(pool):
    """A PULL outside the pool's leases that takes whatever is pushed."""
    socket = pool.context.socket(zmq.PULL)
    socket.linger, socket.rcvtimeo = 0, 10_000
    socket.bind("tcp://127.0.0.1:*")
    yield socket
    socket.close()


async def test_publishing_without_descriptors_holds_up_no_event_loop(pool, sink):
    """A push for which no socket can be opened is queued at once, and sent as soon as there are descriptors."""
    config = SocketConfig(SocketType.PUSH, sink.last_endpoint.decode())
    with shortage():
        await pool.push_async(config, b"queued")
        assert 1 == pool.get_stats()["pools"][config.label]["queued"]
    assert b"queued" == await asyncio.to_thread(sink.recv)


def test_publishing_without_descriptors_for_long_is_an_error(pool, sink, impatient, caplog):
    """It is raised to those who push, without their messages, and what is queued is sent when there are some again."""
    config = SocketConfig(SocketType.PUSH, sink.last_endpoint.decode())
    with shortage():
        pool.push(config, b"queued")
        eventually(lambda: "1 messages wait for it" in caplog.text)
        queued = [b"queued"]

        def push():
            for n in range(10_000):  # the first may come while another thread tries, and be left to that one
                pool.push(config, b"%d" % n)
                queued.append(b"%d" % n)

        with pytest.raises(OutOfDescriptors):
            push()
    assert queued == [sink.recv() for _ in queued]
    assert not sink.poll(100)


def test_a_push_beside_a_lease_that_cannot_begin_is_sent(pool, sink, impatient):
    """What was left to a lessee for whom no socket could be opened is sent without another push."""
    config = SocketConfig(SocketType.PUSH, sink.last_endpoint.decode())
    with ThreadPoolExecutor(1) as threads:
        with shortage():

            def lease():
                with pool.socket(config):
                    pass

            leasing = threads.submit(lease)
            eventually(lambda: pool.get_stats()["pools"].get(config.label, {}).get("active"))
            pool._outlet(config, SocketType.PUSH)._queue.append((b"left",))  # as one does who finds the lock taken
            with pytest.raises(OutOfDescriptors):
                leasing.result(10)
        assert b"left" == sink.recv()


async def test_a_first_request_waits_for_descriptors(pool):
    """Several tasks that ask while there are none are served by one connection as soon as there are some."""
    with echo_process("ROUTER") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint)
        for free in range(6):
            async with ZMQPool(ZMQPoolSettings()) as fresh:
                with shortage(free) as end:
                    asyncio.get_running_loop().call_later(0.1, end)
                    bodies = [b"%d" % n for n in range(3)]
                    assert bodies == await asyncio.gather(*(fresh.request_async(config, body, 10) for body in bodies))
                assert 1 == fresh.get_stats()["pools"][f"{config.label} (asyncio)"]["total"]


async def test_a_request_without_descriptors_ends_in_an_error_that_names_the_limit(pool, free_endpoint, impatient):
    """It is a PoolError within the request's own time limit, in threads and in tasks, multiplexed or not."""
    advice = r"as many file descriptors as it may \(\d+.*Raise the limit \(ulimit -n"
    config = SocketConfig(SocketType.REQ, free_endpoint)
    alone = SocketConfig(SocketType.REQ, free_endpoint, multiplexed=False)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(int).result()
        with shortage():
            with pytest.raises(OutOfDescriptors, match=advice):
                await pool.request_async(config, b"x", timeout=0.1)
            with pytest.raises(OutOfDescriptors, match=advice):
                await pool.request_async(config, b"x")
            with pytest.raises(OutOfDescriptors, match=advice):
                await pool.request_async(alone, b"x")
            with pytest.raises(OutOfDescriptors, match=advice):
                threads.submit(pool.request, config, b"x").result(20)
    assert 0 == pool.get_stats()["metrics"]["active_connections"]


@pytest.mark.parametrize("free", range(5))
def test_a_bind_waits_for_descriptors(pool, tmp_path, free):
    """An ipc path, which needs several of them, is bound as soon as there are enough."""
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    config = SocketConfig(SocketType.REP, f"ipc://{folder}/s", bind=True)
    with shortage(free) as end:
        later = threading.Timer(0.2, end)
        later.start()
        with pool.socket(config) as socket:
            assert config.endpoint == socket.last_endpoint.decode()
        later.join()


def test_an_attendant_begins_without_descriptors():
    """Its thread serves those who need it all the same, and ends when nobody does."""

    class Member:
        served = 0

        def descriptor(self):
            return None

        def attend(self):
            self.served += 1
            return self.served > 2

    attendant, member = Attendant(), Member()
    with shortage():
        attendant.nudge(member)
        eventually(lambda: member.served > 2)
    eventually(lambda: attendant._thread is None)


_BEGINS_WITHOUT_DESCRIPTORS = """
import sys
from app.pools.errors import OutOfDescriptors
from app.pools.zmq_pool import SocketConfig, ZMQPool, attempts
from tests.support.descriptors import shortage

attempts._REAPED_WITHIN = 0.1
pool, alone = ZMQPool(), SocketConfig("PAIR", "inproc://alone", bind=True)
with shortage(int(sys.argv[1])):
    for begin in (pool.start, pool.socket(alone).__enter__):
        try:
            begin()
        except OutOfDescriptors as error:
            print(error)
with pool.socket(alone):
    print("begun")
"""


@pytest.mark.parametrize("free", range(6))
def test_a_pool_begins_without_descriptors(free):
    """libzmq, which would abort the process, is not told to begin: it is an OutOfDescriptors, and later it begins."""
    command = [sys.executable, "-c", _BEGINS_WITHOUT_DESCRIPTORS, str(free)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (0, "") == (ran.returncode, ran.stderr)
    at_start, at_lease, begun = ran.stdout.splitlines()
    assert at_start.startswith("the ZMQ context: no socket could be opened")
    assert at_lease.startswith("PAIR inproc://alone (bound): no socket could be opened")
    assert "begun" == begun
