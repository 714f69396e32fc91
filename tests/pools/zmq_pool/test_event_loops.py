"""Leases in asyncio's event loop and in uvloop's: each type works, and a loop forgets what is closed."""

import asyncio
import socket as network

import pytest
import zmq

from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from tests.support.waiting import eventually_async

ANYWHERE = "tcp://127.0.0.1:*"
BOUND = SocketConfig(SocketType.PULL, ANYWHERE, bind=True)


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request):
    factory = None if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


@pytest.mark.parametrize(
    ("binds", "connects"), [("REP", "REQ"), ("ROUTER", "DEALER"), ("ROUTER", "REQ"), ("PAIR", "PAIR"), ("PULL", "PUSH")]
)
def test_leases_of_each_type_wait_for_messages(runner, binds, connects):
    """A task that waits is woken by the message that another one sends, and the answer finds its way back."""

    async def exchange():
        async with ZMQPool() as pool, pool.socket(SocketConfig(binds, ANYWHERE, bind=True)) as taking:
            async with pool.socket(SocketConfig(connects, taking.last_endpoint.decode())) as giving:
                for _ in range(3):
                    waiting = asyncio.create_task(taking.recv_multipart())
                    await asyncio.sleep(0)
                    await giving.send(b"message")
                    message = await asyncio.wait_for(waiting, 20)
                    assert b"message" == message[-1]
                    if connects != "PUSH":
                        waiting = asyncio.create_task(giving.recv())
                        await asyncio.sleep(0)
                        await taking.send_multipart(message)
                        assert b"message" == await asyncio.wait_for(waiting, 20)

    runner.run(exchange())


def test_a_leased_pub_and_sub_wait_for_messages(runner):
    """A SUB's task is woken by what a leased PUB sends."""

    async def exchange():
        async with ZMQPool() as pool:
            pub = SocketConfig(SocketType.PUB, ANYWHERE, bind=True, subscriber_wait=0)
            async with pool.socket(pub) as first:
                endpoint = first.last_endpoint.decode()
                async with pool.socket(SocketConfig(SocketType.SUB, endpoint, topics=[""])) as sub:
                    waiting = asyncio.create_task(sub.recv())
                    for _ in range(400):  # before it is subscribed a message reaches nobody
                        await first.send(b"message")
                        if (await asyncio.wait([waiting], timeout=0.05))[0]:
                            break
                    assert b"message" == await asyncio.wait_for(waiting, 20)

    runner.run(exchange())


async def stream_over(descriptor):
    """Return a connected socket that has this descriptor as soon as it is free, its peer, and what was in the way."""
    pairs = []

    def has_it():
        pairs.append(network.socketpair())
        return any(descriptor == end.fileno() for end in pairs[-1])

    await eventually_async(has_it)
    ours, other = pairs.pop()
    if other.fileno() == descriptor:
        ours, other = other, ours
    return ours, other, pairs


def close_the_socket(_lease, socket):
    socket.close()


def close_it_detached(lease, _socket):
    lease.detach().close()


@pytest.mark.parametrize("close", [close_the_socket, close_it_detached])
def test_a_loop_forgets_the_descriptor_of_a_socket_that_is_closed(runner, close):
    """A stream that gets the descriptor of a socket closed within its lease works, also after the lease."""

    async def reuse():
        async with ZMQPool() as pool:
            lease = pool.socket(BOUND)
            async with lease as socket:
                assert 0 == await socket.poll(1)  # the loop watches it now
                descriptor = socket.get(zmq.FD)
                close(lease, socket)
                ours, other, rest = await stream_over(descriptor)
                reader, writer = await asyncio.open_connection(sock=ours)
            other.send(b"through")
            assert b"through" == await asyncio.wait_for(reader.read(100), 20)
            writer.close()
            await writer.wait_closed()
            for end in (other, *(end for pair in rest for end in pair)):
                end.close()
            assert 0 == pool.get_stats()["metrics"]["active_connections"]

    runner.run(reuse())


def test_who_waits_for_a_socket_that_is_closed_is_told(runner):
    """Tasks that receive from, or poll, a socket that another one closes end, and the lease as well."""

    async def wait_and_close():
        async with ZMQPool() as pool:
            async with pool.socket(BOUND) as socket:
                receiving = [asyncio.create_task(socket.recv()) for _ in range(2)]
                polling = asyncio.create_task(socket.poll())
                await asyncio.sleep(0)
                socket.close()
                assert socket.closed
                ends = await asyncio.wait_for(asyncio.gather(*receiving, return_exceptions=True), 20)
                assert [zmq.ENOTSOCK] * 2 == [end.errno for end in ends]
                assert await asyncio.wait_for(polling, 20)
            async with pool.socket(BOUND) as another:
                assert not another.closed

    runner.run(wait_and_close())
