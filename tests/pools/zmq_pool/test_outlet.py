"""The one socket of a PUB or PUSH: interrupts, forks, and endpoints that cannot be opened leave it whole."""

import itertools
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import zmq

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import EndpointBusy, NotSent, PoolClosed
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool
from app.pools.zmq_pool.attendant import Attendant, attendant
from app.pools.zmq_pool.context import SharedContext
from app.pools.zmq_pool.opening import open_idle, open_socket
from app.pools.zmq_pool.outlet import Outlet
from tests.support.children import in_child
from tests.support.interrupts import interrupt
from tests.support.waiting import eventually

forking = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def pool():
    pool = ZMQPool(ZMQPoolSettings())
    yield pool
    pool.stop(2)


@pytest.fixture
def sink(pool):
    """A PULL outside the pool's leases that takes whatever is pushed."""
    socket = pool.context.socket(zmq.PULL)
    socket.linger, socket.rcvtimeo, socket.rcvhwm = 0, 10_000, 0
    yield socket
    socket.close()


@pytest.fixture
def endpoint(sink):
    """Where the sink listens."""
    sink.bind("tcp://127.0.0.1:*")
    return sink.last_endpoint.decode()


# Interrupts


@pytest.mark.parametrize("frames", [1, 3])
def test_an_interrupted_push_holds_nobody_up(pool, sink, endpoint, frames):
    """A KeyboardInterrupt in the middle of a push costs one message at most, and never doubles or halves one."""
    config = SocketConfig(SocketType.PUSH, endpoint, options={"SNDHWM": 0})
    serial = itertools.count(1)
    accepted = []

    def push():
        number = next(serial)
        pool.push(config, *[b"%d" % number] * frames)
        accepted.append(number)

    def read():
        received = []
        while sink.poll(10_000 if not over.is_set() else 500):
            received.append(sink.recv_multipart())
        return received

    over = threading.Event()
    push()
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read)
        interrupt(push, 200)
        push()
        over.set()
        received = reading.result()
    assert all([message[0]] * frames == message for message in received)
    numbers = [int(message[0]) for message in received]
    assert accepted[-1] in numbers
    assert len(numbers) == len(set(numbers))
    assert len(set(accepted) - set(numbers)) <= 200


def test_an_interrupted_lease_holds_nobody_up(pool, sink, endpoint):
    """A KeyboardInterrupt while the socket is lent, used or taken back leaves it to the next one, once forsaken."""
    config = SocketConfig(SocketType.PUSH, endpoint)
    outlet = Outlet(config, lambda _: open_socket(pool.context, config), attendant)

    def lease():
        lessee = object()
        try:
            outlet.lend(lessee, 1)
            outlet.send((b"beside",))
            outlet.take_back(lessee, healthy=True)
        except KeyboardInterrupt:
            outlet.forsake()
            raise

    pool.push(config, b"beside")
    try:
        interrupt(lease, 200)
        lessee = object()
        outlet.lend(lessee, 10).send(b"lent")
        outlet.take_back(lessee, healthy=True)
        assert b"lent" in iter(sink.recv, None)
    finally:
        outlet.close(0)


def test_a_watched_socket_that_is_lost_stops_nobody(pool, sink, endpoint):
    """A socket that an interrupt dropped beside its monitor does not keep libzmq's thread, which all sockets share."""
    config = SocketConfig(SocketType.PUSH, endpoint)
    for _ in range(50):
        socket, monitor = open_idle(pool.context, config, zmq.EVENT_ALL)
        assert monitor.poll(10_000)
        pair = (socket, monitor)
        del socket, monitor, pair
    pool.push(config, b"goes through")
    assert b"goes through" == sink.recv()


class _Member:
    def __init__(self, attend):
        self.attend = attend

    def descriptor(self):
        return None


def test_an_attendant_whose_start_was_interrupted_starts_again(monkeypatch):
    """A KeyboardInterrupt at the start of the attendant's thread costs one nudge; the next one is served."""
    one, attended = Attendant(), threading.Event()
    member = _Member(lambda: attended.set() or True)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", lambda _: _raise(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            one.nudge(member)
    one.nudge(member)
    assert attended.wait(10)


def _raise(error):
    raise error


def test_a_nudge_during_the_service_is_not_lost():
    """A member that is nudged while the attendant serves it is served once more."""
    one, served = Attendant(), itertools.count(1)
    again = threading.Event()

    def attend():
        if next(served) == 1:
            one.nudge(member)
        else:
            again.set()
        return True

    member = _Member(attend)
    one.nudge(member)
    assert again.wait(10)


def test_a_member_that_cannot_be_closed_keeps_the_attendant_from_nothing(caplog):
    """The error of one that is dismissed is logged, and the others are still served and closed."""
    one, closed, attended = Attendant(), threading.Event(), threading.Event()
    stays = _Member(lambda: attended.set() or True)
    one.watch(stays)
    bad, good = _Member(bool), _Member(bool)
    bad.close, good.close = lambda: _raise(OSError("cannot")), closed.set
    assert one.dismiss(bad)
    assert one.dismiss(good)
    assert closed.is_set()
    attended.clear()
    one.nudge(stays)
    assert attended.wait(10)
    assert "could not be closed" in caplog.text
    one.unwatch(stays)


def test_a_context_that_no_thread_can_end_is_the_next_pools(monkeypatch, caplog):
    """A stop for which no thread can be started raises nothing, and the context ends with the pool that comes next."""
    shared = SharedContext()
    context = shared.take()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", lambda _: _raise(RuntimeError("can't start new thread")))
        assert not shared.give(0)
    assert "can't start new thread" in caplog.text
    assert shared.take() is context
    assert shared.give(time.monotonic() + 10)
    assert context.closed


# Forks


@forking
def test_a_forked_child_does_not_send_what_its_parent_has_queued(pool, sink, endpoint):
    """What was queued beside a lease when the process forked is sent once, by the parent; the child sends its own."""
    config = SocketConfig(SocketType.PUSH, endpoint)
    pool.push(config, b"before")
    lease = pool.socket(config)
    socket = lease.__enter__()
    for n in range(3):
        pool.push(config, b"queued %d" % n)

    def child():
        for use in (lambda: socket.send(b"x"), lambda: socket.send_multipart([b"x"]), lambda: socket.poll(0)):
            with pytest.raises(NotSent, match="belongs to the process that was forked"):
                use()
        lease.__exit__(None, None, None)
        pool.push(config, b"child")
        pool.stop(10)

    in_child(child)
    socket.send(b"lent")
    lease.__exit__(None, None, None)
    pool.push(config, b"after")
    expected = [b"after", b"before", b"child", b"lent", b"queued 0", b"queued 1", b"queued 2"]
    assert expected == sorted(sink.recv() for _ in expected)
    assert not sink.poll(100)


@forking
def test_a_forked_child_begins_with_an_empty_queue(pool, sink, free_endpoint):
    """Messages that wait for a peer when the process forks are sent once, by the parent."""
    config = SocketConfig(SocketType.PUSH, free_endpoint)
    for n in range(3):
        pool.push(config, b"%d" % n)

    def child():
        assert {} == pool.get_stats()["pools"]
        pool.push(config, b"child")
        assert 1 == pool.get_stats()["pools"][config.label]["queued"]
        pool.stop(0)

    in_child(child)
    sink.bind(free_endpoint)
    assert [b"0", b"1", b"2"] == [sink.recv() for _ in range(3)]
    assert not sink.poll(100)


# Endpoints that cannot be opened

_OWNER = """
import sys, zmq
socket = zmq.Context().socket(zmq.PULL)
socket.bind("tcp://127.0.0.1:*")
print(socket.last_endpoint.decode(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owned_endpoint():
    """An endpoint that another process has bound, and what makes it end."""
    with subprocess.Popen([sys.executable, "-c", _OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:

        def end():
            owner.stdin.close()
            owner.wait(20)

        try:
            yield owner.stdout.readline().decode().strip(), end
        finally:
            owner.kill()


@pytest.mark.parametrize("kind", [SocketType.REP, SocketType.PULL, SocketType.PUB])
def test_an_endpoint_bound_by_another_process_is_named(pool, owned_endpoint, kind):
    """To bind what another process has bound is EndpointBusy, which names the endpoint and the next step."""
    endpoint, _ = owned_endpoint
    with (
        pytest.raises(EndpointBusy, match=f"{endpoint}.*another process.*[Ee]nd it, or bind another endpoint"),
        pool.socket(SocketConfig(kind, endpoint, bind=True)),
    ):
        pass
    assert 0 == pool.get_stats()["metrics"]["active_connections"]


def test_a_push_that_failed_is_not_sent_later(pool, sink, owned_endpoint):
    """The message of a push that raised EndpointBusy is not in the queue when the endpoint becomes free."""
    endpoint, end = owned_endpoint
    config = SocketConfig(SocketType.PUSH, endpoint, bind=True)
    for _ in range(2):
        with pytest.raises(EndpointBusy):
            pool.push(config, b"refused")
    assert 0 == pool.get_stats()["pools"][config.label]["queued"]
    end()
    pool.push(config, b"accepted")
    sink.connect(endpoint)
    assert b"accepted" == sink.recv()
    assert not sink.poll(100)


def test_a_push_for_which_no_thread_can_be_started_is_not_sent_later(pool, sink, free_endpoint, monkeypatch):
    """The message of a push that raised, because it cannot wait for its peer without a thread, is not queued."""
    config = SocketConfig(SocketType.PUSH, free_endpoint)
    outlet = Outlet(config, lambda _: open_socket(pool.context, config), Attendant())
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", lambda _: _raise(RuntimeError("can't start new thread")))
        for _ in range(3):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                outlet.send((b"refused",))
            assert 0 == outlet.figures()["queued"]
    try:
        outlet.send((b"accepted",))
        sink.bind(free_endpoint)
        assert b"accepted" == sink.recv()
        assert not sink.poll(100)
    finally:
        outlet.close(0)


def test_what_others_have_queued_outlives_a_push_that_failed(pool, sink, endpoint):
    """A push that fails to open the socket takes back its own message alone, and not an equal one of another thread."""
    config = SocketConfig(SocketType.PUSH, endpoint)
    opening, may_fail = threading.Event(), threading.Event()
    failures = iter([EndpointBusy("taken")])

    def open_late(_):
        for failure in failures:
            opening.set()
            assert may_fail.wait(10)
            raise failure
        return open_socket(pool.context, config)

    outlet = Outlet(config, open_late, attendant)
    failed = []

    def push():
        try:
            outlet.send((b"same",))
        except EndpointBusy as error:
            failed.append(error)

    thread = threading.Thread(target=push)
    thread.start()
    assert opening.wait(10)
    for body in (b"other", b"same", b"last"):
        outlet.send((body,))
    may_fail.set()
    thread.join(10)
    assert 1 == len(failed)
    try:
        assert [b"other", b"same", b"last"] == [sink.recv() for _ in range(3)]
    finally:
        outlet.close(0)


def test_a_bound_endpoint_whose_lease_failed_is_bound_again(pool, sink, free_endpoint):
    """After a lease that ended with an exception, its endpoint, which is freed a moment later, is no one else's."""
    config = SocketConfig(SocketType.PUSH, free_endpoint, bind=True)
    sink.connect(free_endpoint)
    for n in range(20):
        with pytest.raises(LookupError), pool.socket(config):
            raise LookupError
        pool.push(config, b"%d" % n)
    assert [b"%d" % n for n in range(20)] == [sink.recv() for _ in range(20)]


def test_a_push_after_the_stop_is_refused(pool, endpoint):
    """An outlet that is closed queues nothing more."""
    config = SocketConfig(SocketType.PUSH, endpoint)
    outlet = Outlet(config, lambda _: open_socket(pool.context, config), attendant)
    outlet.send((b"before",))
    outlet.close(10)
    with pytest.raises(PoolClosed):
        outlet.send((b"after",))
    assert 0 == outlet.figures()["queued"]


def test_a_push_beside_the_stop_is_taken_back_by_nobody_but_the_lock_holder(pool, endpoint):
    """A message that came too late stays queued while another thread takes messages, and is refused after that."""
    config = SocketConfig(SocketType.PUSH, endpoint)
    outlet = pool._outlet(config, SocketType.PUSH)
    outlet.close(0)
    with ThreadPoolExecutor(1) as threads:
        with outlet._lock:
            pushed = threads.submit(outlet.send, (b"late",))
            eventually(lambda: outlet._queue or pushed.done())
            wait([pushed], 0.1)
            assert 1 == len(outlet._queue)
        with pytest.raises(PoolClosed):
            pushed.result(10)
    assert not outlet._queue


def test_a_message_queued_while_the_outlet_ends_is_refused(pool, endpoint):
    """What is appended between the count of the dropped messages and their removal is not lost without a word."""
    outlet = pool._outlet(SocketConfig(SocketType.PUSH, endpoint), SocketType.PUSH)

    latecomers = iter([(b"late",)])

    class Late(deque):
        """A queue to which one more message comes as soon as its length was asked at the end."""

        def __len__(self):
            length = super().__len__()
            if outlet._closed:
                self.extend(latecomers)
            return length

    outlet._queue = outlet._backlog.queue = Late()
    outlet.close(0)
    assert [(b"late",)] == list(outlet._queue)
