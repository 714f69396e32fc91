"""How many descriptors, sockets and threads the process has for what it does."""

import asyncio
import contextlib
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from app.pools.core.settings import ZMQPoolSettings
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.echo_process import echo_process
from tests.support.waiting import eventually

AGENTS = 288


@pytest.fixture
def configs():
    """REQ configurations of three servers in processes of their own."""
    with echo_process("ROUTER") as one, echo_process("ROUTER") as two, echo_process("ROUTER") as three:
        yield [SocketConfig(SocketType.REQ, each.endpoint, receive_timeout=60) for each in (one, two, three)]


def libzmqs_threads():
    """Count the threads of this process that are libzmq's."""
    count = 0
    for name in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it has just ended
            count += "ZMQ" in name.read_text()
    return count


def libzmqs_lasting_threads():
    """Count them when those of a context that ends, an earlier test's, have gone."""
    with contextlib.suppress(AssertionError):
        eventually(lambda: not libzmqs_threads(), 5)
    return libzmqs_threads()


async def test_288_agents_with_three_endpoints_each_at_the_same_time(configs):
    """288 tasks that ask three endpoints all at once cost at most 60 descriptors and two of libzmq's threads."""
    process = psutil.Process()
    threads, before = libzmqs_lasting_threads(), process.num_fds()
    async with ZMQPool(ZMQPoolSettings()) as pool:
        begun = asyncio.Barrier(AGENTS)

        async def agent(name):
            await begun.wait()
            for turn in range(3):
                bodies = [b"%d.%d.%d" % (name, turn, n) for n in range(len(configs))]
                asking = zip(configs, bodies, strict=True)
                assert bodies == await asyncio.gather(*(pool.request_async(config, body) for config, body in asking))

        await asyncio.gather(*(agent(name) for name in range(AGENTS)))
        assert process.num_fds() - before <= 60
        assert libzmqs_threads() - threads == 2


def test_288_threads_with_three_endpoints_each_at_the_same_time(configs):
    """288 threads whose sockets are capped at six an endpoint cost at most 60 descriptors, and all are served."""
    process = psutil.Process()
    with ThreadPoolExecutor(AGENTS) as agents:
        threads, before = libzmqs_lasting_threads(), process.num_fds()
        with ZMQPool(ZMQPoolSettings(max_connections=6, checkout_timeout=60)) as pool:
            begun = threading.Barrier(AGENTS)

            def agent(name):
                begun.wait(60)
                for turn in range(3):
                    for config in configs:
                        body = b"%d.%d" % (name, turn)
                        assert body == pool.request(config, body)

            for each in [agents.submit(agent, name) for name in range(AGENTS)]:
                each.result(60)
            assert pool.get_stats()["metrics"]["total_connections"] <= 18
            assert process.num_fds() - before <= 60
            assert libzmqs_threads() - threads == 2


def test_a_leased_socket_costs_two_descriptors(configs):
    """A socket has its own descriptor and its connection's; none has a monitor, and none is left at the end."""
    process = psutil.Process()
    before = process.num_fds()
    with ZMQPool(ZMQPoolSettings()) as pool:
        pool.request(configs[0], b"warm")
        eventually(lambda: pool.health()["endpoints"][configs[0].endpoint])
        warm = process.num_fds()
        with ExitStack() as leases:
            for socket in [leases.enter_context(pool.socket(configs[0])) for _ in range(50)]:
                socket.send(b"x")
                assert b"x" == socket.recv()
        assert process.num_fds() - warm <= 2 * 49
    eventually(lambda: process.num_fds() <= before)


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 8000, reason="needs room for 1,100 sockets")
def test_one_context_has_more_than_1023_sockets(free_port):
    """1,100 sockets are leased at the same time, more than libzmq's context would have by default."""
    endpoint = f"inproc://many-{free_port}"
    with ZMQPool(ZMQPoolSettings(max_connections=1100, max_total_connections=1200)) as pool:
        with pool.socket(SocketConfig(SocketType.ROUTER, endpoint, bind=True)) as server, ExitStack() as leases:
            config = SocketConfig(SocketType.REQ, endpoint)
            sockets = [leases.enter_context(pool.socket(config)) for _ in range(1100)]
            assert 1101 == pool.get_stats()["metrics"]["active_connections"]
            for number, socket in enumerate(sockets):
                socket.send(b"%d" % number)
                server.send_multipart(server.recv_multipart())
                assert b"%d" % number == socket.recv()


def test_every_thread_gets_its_own_reply_through_sockets_that_change_hands():
    """Of 8,000 requests through four sockets, each of which goes from thread to thread, none gets another's reply."""
    users = {}
    with ZMQPool(ZMQPoolSettings(max_connections=4, checkout_timeout=60)) as pool, echo_process("ROUTER") as server:
        config = SocketConfig(SocketType.REQ, server.endpoint, receive_timeout=60)

        def ask(name):
            for n in range(1000):
                body = b"%d.%d" % (name, n)
                with pool.socket(config) as socket:
                    users.setdefault(socket, set()).add(name)
                    socket.send(body)
                    assert body == socket.recv()

        with ThreadPoolExecutor(8) as threads:
            for each in [threads.submit(ask, name) for name in range(8)]:
                each.result(60)
        assert len(users) <= 4
        assert all(len(each) > 1 for each in users.values())
