"""Looking for a reply before sleeping: done where it is found to be faster, and nowhere else."""

import pytest

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import NoReply
from app.pools.zmq_pool import SocketConfig, ZMQPool, busy_poll
from app.pools.zmq_pool.busy_poll import BusyPoll
from tests.support.echo import replier

MICROSECOND = 1e-6


class Peer:
    """A socket whose replies come after some time, on a clock of its own; to be woken takes some more."""

    def __init__(self, monkeypatch, reply_after, wake_up):
        self.now = 0.0
        self.reply_after = reply_after
        self.wake_up = wake_up
        self.reply_at = None
        self.slept = 0
        monkeypatch.setattr(busy_poll, "_now", lambda: self.now)
        monkeypatch.setattr(busy_poll, "_yield", lambda: None)
        monkeypatch.setattr(busy_poll, "raw_get", lambda *_: self.is_there())
        monkeypatch.setattr(busy_poll, "raw_recv", lambda *_: self.receive())

    def is_there(self):
        self.now += MICROSECOND
        return self.now >= self.reply_at

    def receive(self):
        if self.now < self.reply_at:
            self.slept += 1
            self.now = self.reply_at + self.wake_up
        return "reply"

    def answers(self, polled, times):
        """Return how many of so many replies were slept for."""
        before = self.slept
        for _ in range(times):
            self.reply_at = self.now + self.reply_after
            assert "reply" == polled.receive(self)
        return self.slept - before


def test_a_quick_reply_is_looked_for(monkeypatch):
    """Where waking up takes as long as the reply, hardly any receive sleeps after the first few."""
    peer = Peer(monkeypatch, 50 * MICROSECOND, 50 * MICROSECOND)
    polled = BusyPoll(200 * MICROSECOND)
    peer.answers(polled, 16)
    assert peer.answers(polled, 10_000) < 200


@pytest.mark.parametrize(
    ("reply_after", "wake_up"), [(5000, 50), (50, 0)], ids=["a slow peer", "a machine that wakes up at once"]
)
def test_where_it_does_not_pay_a_receive_sleeps(monkeypatch, reply_after, wake_up):
    """Nearly every receive sleeps at once: looking costs what it cannot win back."""
    peer = Peer(monkeypatch, reply_after * MICROSECOND, wake_up * MICROSECOND)
    polled = BusyPoll(200 * MICROSECOND)
    peer.answers(polled, 16)
    assert peer.answers(polled, 10_000) > 9_800


def test_what_has_changed_is_noticed(monkeypatch):
    """A peer that becomes slow is slept for within a thousand receives, and looked for when it is quick again."""
    peer = Peer(monkeypatch, 50 * MICROSECOND, 50 * MICROSECOND)
    polled = BusyPoll(200 * MICROSECOND)
    peer.answers(polled, 100)
    for reply_after, slept in ((5000, range(890, 901)), (50, range(20))):
        peer.reply_after = reply_after * MICROSECOND
        peer.answers(polled, 1100)
        assert peer.answers(polled, 900) in slept


@pytest.mark.parametrize("seconds", [0, 0.0002, 0.01], ids=["never", "by default", "for long"])
def test_replies_and_time_limits_are_the_same_with_and_without(free_endpoint, seconds):
    """Every reply is the request's own, in one frame and in several, and a missing one is NoReply."""
    with ZMQPool(ZMQPoolSettings(busy_poll=seconds)) as pool, replier() as endpoint:
        for number in range(60):
            with pool.socket(SocketConfig("REQ", endpoint)) as socket:
                socket.send_string(f"{number}")
                assert f"{number}" == socket.recv_string()
                socket.send(b"%d" % number)
                assert b"%d" % number == socket.recv()
                socket.send_multipart([b"a", b"%d" % number])
                assert [b"a", b"%d" % number] == socket.recv_multipart()
        config = SocketConfig("REQ", free_endpoint, receive_timeout=0.05)
        with pool.socket(SocketConfig("REP", free_endpoint, bind=True)) as silent:
            for receive in ("recv", "recv_string", "recv_multipart"):
                with pool.socket(config) as socket:
                    socket.send(b"anyone?")
                    with pytest.raises(NoReply):
                        getattr(socket, receive)()
                assert b"anyone?" == silent.recv()
                silent.send(b"too late")


@pytest.mark.parametrize("timeout", [None, 20], ids=["the configuration's time limit", "one of its own"])
def test_requests_look_for_their_replies(monkeypatch, timeout):
    """`pool.request` looks for its reply as a receive on a leased socket does, whichever time limit it has."""
    receives = []
    receive = BusyPoll.receive

    def counted(polled, socket):
        receives.append(polled)
        return receive(polled, socket)

    monkeypatch.setattr(BusyPoll, "receive", counted)
    with ZMQPool(ZMQPoolSettings(busy_poll=0.0002)) as pool, replier() as endpoint:
        config = SocketConfig("REQ", endpoint, max_connections=1)
        for number in range(20):
            assert b"%d" % number == pool.request(config, b"%d" % number, timeout)
        with pool.socket(config) as socket:
            assert 10_000 == socket.rcvtimeo
    assert len(receives) >= 19  # before the first one another thread may have had the last lease
