"""Peers and publishers: the handles that agents get."""

import orjson
import pytest

from app.pools.errors import RequestFailed, UnexpectedReply
from app.pools.zmq_pool import Peer, Publisher, SocketConfig, SocketType, ZMQPool
from tests.support.echo import replier


def answer(frames):
    """Answer a message as an agent would."""
    match orjson.loads(frames[0]):
        case {"fail": kind}:
            return [orjson.dumps({"poolwire.error": {"type": kind, "message": "no such book"}})]
        case {"say": text}:
            return [text.encode()]
        case message:
            return [orjson.dumps({"echo": message})]


@pytest.fixture
def peer():
    with ZMQPool() as pool, replier(answer) as endpoint:
        yield Peer(pool, SocketConfig(SocketType.REQ, endpoint))


async def test_a_peer_answers_json_with_json(peer):
    """`ask` and `ask_async` send a message as JSON and return the reply's JSON."""
    assert {"echo": {"n": 1}} == peer.ask({"n": 1})
    assert {"echo": {"n": 2}} == await peer.ask_async({"n": 2}, timeout=10)
    assert b'{"echo":{}}' == peer.request(b"{}")
    assert b'{"echo":{}}' == await peer.request_async(b"{}")


async def test_a_peers_error_is_raised_here(peer):
    """A reply that reports an error raises it, with the class name and message of the peer's."""
    with pytest.raises(RequestFailed, match="KeyError: no such book") as failed:
        peer.ask({"fail": "KeyError"})
    assert ("KeyError", "no such book") == (failed.value.kind, failed.value.reason)
    with pytest.raises(RequestFailed):
        await peer.ask_async({"fail": "KeyError"})


@pytest.mark.parametrize("reply", ["[1]", "no json"])
def test_a_reply_that_is_no_json_object_is_an_error(peer, reply):
    """What is not a JSON object cannot be an answer."""
    with pytest.raises(UnexpectedReply, match="JSON"):
        peer.ask({"say": reply})


def test_handles_show_where_they_lead_and_refuse_the_wrong_type(peer):
    """The repr names the endpoint; a publisher needs a PUB or PUSH."""
    assert peer.config.endpoint in repr(peer)
    with pytest.raises(TypeError, match="PUB or PUSH"):
        Publisher(peer.pool, peer.config)
    for handle in (Peer, Publisher):
        with pytest.raises(TypeError, match=r"not str: 'tcp://127.0.0.1:1'; SocketConfig\(type, endpoint\) makes one"):
            handle(peer.pool, "tcp://127.0.0.1:1")
    with pytest.raises(TypeError, match="REQ configuration is needed"):
        peer.pool.request(SocketConfig(SocketType.PUB, "tcp://127.0.0.1:1"), b"")
