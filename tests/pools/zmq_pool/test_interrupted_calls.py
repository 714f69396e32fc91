"""Signals that end a call when libzmq has done it, and before it is back: no lessee finds what another one began."""

import contextlib
import itertools
import signal

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool, asking, busy_poll, sockets
from tests.support.echo import replier
from tests.support.interrupts import interrupt


@pytest.fixture
def pool():
    with ZMQPool(ZMQPoolSettings(max_connections=1, busy_poll=0)) as pool:
        yield pool


@pytest.fixture
def peer():
    """Return a function that makes a socket of the other side."""
    context = zmq.Context()
    made = []

    def make(kind, endpoint):
        socket = context.socket(kind)
        made.append(socket)
        socket.linger, socket.rcvtimeo, socket.sndtimeo = 0, 20_000, 20_000
        socket.connect(endpoint)
        return socket

    yield make
    for socket in made:
        socket.close(0)
    context.term()


@pytest.fixture
def struck(monkeypatch):
    """Return a function that has a signal arrive right after one of the next calls to libzmq of a kind.

    ``on`` is a socket, whose own attribute makes the call.
    """

    def strike(name, after=1, on=None):
        calls = itertools.count(1)
        for module in (asking, busy_poll, sockets):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, struck_one(getattr(module, name), calls, after))
        if on is not None:
            monkeypatch.setitem(on.__dict__, name, struck_one(getattr(on, name), calls, after))

    def struck_one(call, calls, after):
        def struck_call(*args):
            result = call(*args)
            if next(calls) == after:
                signal.raise_signal(signal.SIGINT)
            return result

        return struck_call

    return strike


@contextlib.contextmanager
def interrupted(pool, config, *, caught):
    """Lease a socket for a block that an interrupt ends, which the lessee deals with or not."""
    happened = False
    with contextlib.suppress(KeyboardInterrupt), pool.socket(config) as socket:
        try:
            yield socket
        except KeyboardInterrupt:
            happened = True
            if not caught:
                raise
    assert happened


def bound(pool, kind, endpoint):
    """Return a configuration that binds an endpoint, of which a socket is kept already."""
    config = SocketConfig(kind, endpoint, bind=True, receive_timeout=20)
    with pool.socket(config):
        return config


def exchanged(sender, receiver, frames):
    """Send a message, again until one arrives (the end of a connection takes messages with it), and return that."""
    for _ in range(400):
        with contextlib.suppress(zmq.Again):
            sender.send_multipart(frames, zmq.NOBLOCK)
        if receiver.poll(50):
            return receiver.recv_multipart()
    raise AssertionError("nothing arrived")


KEPT = [(SocketType.PULL, zmq.PUSH), (SocketType.ROUTER, zmq.DEALER), (SocketType.PAIR, zmq.PAIR)]
either_way = pytest.mark.parametrize("caught", [True, False], ids=["caught", "leaving the block"])


@either_way
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("receive", ["recv", "recv_multipart"])
@pytest.mark.parametrize(("kind", "sender"), KEPT)
def test_no_lessee_begins_in_the_middle_of_a_message(
    pool, peer, free_endpoint, struck, kind, sender, receive, calls, caught
):
    """After an interrupt between the frames of a message, the next lessee of a bound endpoint receives whole ones."""
    config = bound(pool, kind, free_endpoint)
    other = peer(sender, free_endpoint)
    other.send_multipart([b"A", b"B", b"C"])
    struck("raw_recv", calls)
    with interrupted(pool, config, caught=caught) as socket:
        for _ in range(calls):
            getattr(socket, receive)()
    with pool.socket(config) as socket:
        message = exchanged(other, socket, [b"A", b"B", b"C"])
        assert [b"A", b"B", b"C"] == message[-3:]
        assert len(message) == (4 if kind is SocketType.ROUTER else 3)


@either_way
@pytest.mark.parametrize("kind", [SocketType.PULL, SocketType.PAIR, SocketType.ROUTER])
def test_an_interrupt_that_leaves_no_frames_costs_no_bound_socket(pool, peer, free_endpoint, struck, kind, caught):
    """Messages that wait behind one whose receive was interrupted are the next lessee's, in the same socket."""
    config = bound(pool, kind, free_endpoint)
    other = peer(dict(KEPT)[kind], free_endpoint)
    for body in (b"first", b"second"):
        other.send(body)
    frames = 2 if kind is SocketType.ROUTER else 1
    struck("raw_recv", frames)
    with interrupted(pool, config, caught=caught) as socket:
        socket.recv_multipart()
    with pool.socket(config) as same:
        assert socket is same
        assert b"second" == same.recv_multipart()[-1]


@either_way
def test_an_interrupted_reply_socket_serves_on(pool, peer, free_endpoint, struck, caught):
    """A bound REP whose receive was interrupted costs that request, and none of the lessees after it."""
    config = bound(pool, SocketType.REP, free_endpoint)
    client = peer(zmq.DEALER, free_endpoint)
    client.send_multipart([b"", b"lost"])
    struck("raw_recv")
    with interrupted(pool, config, caught=caught) as socket:
        socket.recv()
    for _ in range(5):
        with pool.socket(config) as socket:
            assert [b"request"] == exchanged(client, socket, [b"", b"request"])
            socket.send(b"reply")
        assert [b"", b"reply"] == client.recv_multipart()


@either_way
def test_a_reply_that_was_sent_under_an_interrupt_costs_no_bound_socket(pool, peer, free_endpoint, struck, caught):
    """A bound REP that sent its reply is kept, and the requests that wait in it are the next lessee's."""
    config = bound(pool, SocketType.REP, free_endpoint)
    client = peer(zmq.DEALER, free_endpoint)
    for body in (b"first", b"second"):
        client.send_multipart([b"", body])
    struck("raw_send")
    with interrupted(pool, config, caught=caught) as socket:
        assert b"first" == socket.recv()
        socket.send(b"reply")
    assert [b"", b"reply"] == client.recv_multipart()
    with pool.socket(config) as same:
        assert socket is same
        assert b"second" == same.recv()
        same.send(b"another")


def test_a_reply_out_of_turn_costs_no_bound_socket(pool, peer, free_endpoint):
    """A lessee that sends on a REP what nobody asked for gets its error, and the next one the same socket."""
    config = bound(pool, SocketType.REP, free_endpoint)
    with pool.socket(config) as socket, pytest.raises(zmq.ZMQError) as error:
        socket.send(b"unasked")
    assert zmq.EFSM == error.value.errno
    client = peer(zmq.DEALER, free_endpoint)
    client.send_multipart([b"", b"request"])
    with pool.socket(config) as same:
        assert socket is same
        assert b"request" == same.recv()
        same.send(b"reply")


@either_way
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("separately", [True, False], ids=["send", "send_multipart"])
def test_half_a_message_is_not_completed_by_the_next_lessee(
    pool, peer, free_endpoint, struck, frames, separately, caught
):
    """What an interrupt kept a lessee from completing reaches nobody; the next message arrives alone and whole."""
    config = bound(pool, SocketType.PAIR, free_endpoint)
    other = peer(zmq.PAIR, free_endpoint)
    struck("raw_send", frames)
    with interrupted(pool, config, caught=caught) as socket:
        if separately:
            socket.send(b"A", zmq.SNDMORE)
            socket.send(b"B", zmq.SNDMORE)
        else:
            socket.send_multipart([b"A", b"B", b"C"])
    with pool.socket(config) as socket:
        socket.send_multipart([b"next", b"lessee"])
        assert [b"next", b"lessee"] == other.recv_multipart()


SENDS = {
    "send": lambda socket, body: socket.send(body),
    "send_string": lambda socket, body: socket.send_string(body.decode()),
    "send_multipart": lambda socket, body: socket.send_multipart([b"", body]),
    "without a copy": lambda socket, body: socket.send(body, copy=False),
}
RECEIVES = {
    "recv": lambda socket: socket.recv(),
    "recv_string": lambda socket: socket.recv_string(),
    "recv_multipart": lambda socket: socket.recv_multipart(),
    "recv_into": lambda socket: socket.recv_into(bytearray(100)),
    "as a frame": lambda socket: socket.recv(copy=False),
}


def check_own_replies(pool, config, count=3):
    """Assert that so many lessees, one after the other, read the replies to their own requests."""
    for number in range(count):
        with pool.socket(config) as socket:
            socket.send_multipart([b"", b"own %d" % number])
            assert [b"", b"own %d" % number] == socket.recv_multipart()
    assert 0 == pool.get_stats()["metrics"]["active_connections"]


@either_way
@pytest.mark.parametrize("send", SENDS)
@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER])
def test_the_reply_to_an_interrupted_send_reaches_nobody(pool, struck, kind, send, caught):
    """A request that went out under an interrupt costs its socket: the next lessee reads its own reply."""
    with replier() as endpoint:
        config = SocketConfig(kind, endpoint, receive_timeout=20)
        check_own_replies(pool, config)
        with interrupted(pool, config, caught=caught) as socket:
            if kind is SocketType.DEALER:
                socket.send(b"", zmq.SNDMORE)
            struck("raw_send", 2 if send == "send_multipart" else 1)
            SENDS[send](socket, b"mine")
        check_own_replies(pool, config)


@either_way
def test_the_reply_to_a_send_that_kept_the_lock_reaches_nobody(pool, struck, caught):
    """It is the same with the call that threads use which compete for the interpreter's lock."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint, receive_timeout=20)
        check_own_replies(pool, config)
        for send in ("send", "send_string"):
            struck("send_now")
            with interrupted(pool, config, caught=caught) as socket:
                socket._trace[asking.ALONE_AT] = False
                SENDS[send](socket, b"mine")
            check_own_replies(pool, config)


@either_way
@pytest.mark.parametrize("receive", RECEIVES)
@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER])
@pytest.mark.parametrize("frames", [1, 3])
def test_an_interrupted_receive_leaves_nothing_to_the_next_lessee(pool, struck, kind, receive, frames, caught):
    """A reply of which an interrupt took a frame, or all, is no other lessee's, nor is an error."""
    with replier() as endpoint:
        config = SocketConfig(kind, endpoint, receive_timeout=20)
        check_own_replies(pool, config)
        with interrupted(pool, config, caught=caught) as socket:
            socket.send_multipart([b""] * (kind is SocketType.DEALER) + [b"mine"] * frames)
            if receive == "recv_into":  # it has received a frame when it asks whether more follow
                struck("_frames_left", on=socket)
            else:
                struck("raw_recv")
            RECEIVES[receive](socket)
        check_own_replies(pool, config)


def test_a_lessee_that_deals_with_an_interrupt_goes_on(pool, struck):
    """Who catches an interrupt of a send in the block can receive the reply; such a socket is as good as any."""
    with replier() as endpoint:
        config = SocketConfig(SocketType.REQ, endpoint, receive_timeout=20)
        check_own_replies(pool, config)
        struck("raw_send")
        with pool.socket(config) as socket:
            with pytest.raises(KeyboardInterrupt):
                socket.send(b"mine")
            assert b"mine" == socket.recv()
        with pool.socket(config) as same:
            assert socket is same


@either_way
@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER])
def test_interrupts_at_any_moment_leave_each_lessee_its_own_replies(pool, kind, caught):
    """Whenever a signal breaks requests off, a lessee reads the reply to its own request, and no error of another's."""
    numbers = itertools.count()
    with replier() as endpoint:
        config = SocketConfig(kind, endpoint, receive_timeout=20)

        def ask():
            with pool.socket(config) as socket, contextlib.suppress(*[KeyboardInterrupt] * caught):
                body = b"%d" % next(numbers)
                socket.send_multipart([b"", body])
                assert [b"", body] == socket.recv_multipart()

        for _ in range(100):
            interrupt(ask, 1)
            check_own_replies(pool, config, 1)
