"""Configurations: what is refused, and how clearly."""

from socket import AF_INET6, create_server
from typing import Any

import pytest
import zmq

from app.pools.errors import ConfigError
from app.pools.zmq_pool import CurveServer, KeyPair, SocketConfig, SocketType, ZMQPool
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"RCVHMW": 10}, "did you mean RCVHWM"),
        ({"RCVHWM": "10"}, "takes an int, not str"),
        ({"RCVHWM": 1.5}, "takes an int"),
        ({"RCVHWM": 2**31}, "takes an int up to 2147483647"),
        ({"MAXMSGSIZE": 2**63}, "takes an int up to 9223372036854775807"),
        (["RCVHWM"], "takes a mapping"),
        ({None: 1}, "None is not the name"),
        ({"SOCKS_PROXY": 5}, "takes bytes or str"),
        ({"SUBSCRIBE": b"a"}, "topics="),
        ({"CURVE_SECRETKEY": b"a"}, "curve="),
        ({"EVENTS": 1}, "cannot be read|can be read but not set"),
        ({10**6: 1}, "not the number of a ZMQ socket option"),
    ],
)
def test_wrong_options_are_errors_that_say_what_is_right(options, complaint):
    """A misspelt, mistyped or misplaced option raises an error with the next step."""
    with pytest.raises(ConfigError, match=complaint):
        SocketConfig(SocketType.REQ, "tcp://127.0.0.1:5555", options=options)


@pytest.mark.parametrize(
    ("endpoint", "complaint"),
    [
        ("127.0.0.1:5555", "not a ZMQ endpoint"),
        (None, "None is not a ZMQ endpoint"),
        ("http://127.0.0.1:5555", "tcp, ipc and inproc"),
        ("tcp://127.0.0.1", "lacks a port"),
        ("tcp://127.0.0.1:http", "port 'http'"),
        ("tcp://127.0.0.1:70000", "port '70000'"),
        ("tcp://127.0.0.1:*", "port '\\*'"),
        ("tcp://*:5555", "cannot be connected to"),
        ("ipc:///" + "a" * 107, "108 bytes"),
    ],
)
def test_wrong_endpoints_are_errors(endpoint, complaint):
    """An endpoint that libzmq could not use, or would use in silence, is refused."""
    with pytest.raises(ConfigError, match=complaint):
        SocketConfig(SocketType.REQ, endpoint)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"socket_type": "REK"}, "not one of REQ, REP"),
        ({"topics": ["a"]}, "only SUB"),
        ({"send_timeout": -1}, "send_timeout=-1"),
        ({"receive_timeout": float("nan")}, "receive_timeout=nan"),
        ({"leak_threshold": -1}, "leak_threshold=-1"),
        ({"send_timeout": "5"}, "send_timeout='5'"),
        ({"send_timeout": None}, "send_timeout=None"),
        ({"subscriber_wait": True}, "subscriber_wait=True"),
        ({"linger": "2"}, "linger='2'"),
        ({"linger": -1}, "linger=-1"),
        ({"linger": float("inf")}, "unbounded"),
        ({"max_connections": 0}, "max_connections=0"),
        ({"max_connections": True}, "max_connections=True"),
        ({"backlog": None}, "backlog=None"),
        ({"allow_plaintext": "false"}, "allow_plaintext='false' is not allowed; it must be True or False"),
        ({"bind": "false"}, "bind='false'"),
        ({"multiplexed": "no"}, "multiplexed='no'"),
        ({"socket_type": "SUB", "topics": [1]}, "a topic is bytes or str, not int: 1"),
        ({"socket_type": "SUB", "topics": 1}, r"topics=\[1\]"),
        ({"curve": "keys/a.key"}, "must be a CurveClient"),
        ({"options": {"LINGER": -1}}, "unbounded"),
        ({"curve": CurveServer(KeyPair.new())}, "must be a CurveClient"),
    ],
)
def test_wrong_values_are_errors_that_name_them(wrong, complaint):
    """Every value out of range is named in the error."""
    values = {"socket_type": SocketType.REQ, "endpoint": "tcp://127.0.0.1:5555", **wrong}
    with pytest.raises(ConfigError, match=complaint):
        SocketConfig(**values)


@pytest.mark.parametrize(
    ("kind", "bind", "reason"),
    [
        (SocketType.PUB, False, "all threads and tasks send through one socket"),
        (SocketType.PUSH, False, "all threads and tasks send through one socket"),
        (SocketType.PUSH, True, "a bound endpoint has one socket"),
        (SocketType.REP, True, "a bound endpoint has one socket"),
    ],
)
def test_a_count_that_would_have_no_effect_is_refused(kind, bind, reason):
    """Where there is one socket whatever the count, several are an error that says why; one is no news."""
    with pytest.raises(ConfigError, match=f"max_connections=5 of {kind.name} .* no effect: {reason}; leave it out"):
        SocketConfig(kind, "tcp://127.0.0.1:5555", bind=bind, max_connections=5)
    SocketConfig(kind, "tcp://127.0.0.1:5555", bind=bind, max_connections=1)


@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER, SocketType.ROUTER])
@pytest.mark.parametrize("name", ["ROUTING_ID", "routing_id", zmq.IDENTITY])
def test_a_name_is_one_sockets(kind, name):
    """A ROUTING_ID for sockets that connect is refused, unless there is one of them; one that binds is alone."""
    for several in (None, 2):
        with pytest.raises(ConfigError, match=r"ROUTING_ID .* give max_connections=1"):
            SocketConfig(kind, "tcp://127.0.0.1:5555", options={name: b"a"}, max_connections=several)
    SocketConfig(kind, "tcp://127.0.0.1:5555", options={name: b"a"}, max_connections=1)
    SocketConfig(kind, "tcp://127.0.0.1:*", bind=True, options={name: b"a"})


def test_what_is_published_may_not_be_dropped_at_once():
    """A PUB or PUSH with a linger of 0 would drop what it has just accepted, so it is refused."""
    for how in ({"linger": 0}, {"options": {"LINGER": 0}}):
        with pytest.raises(ConfigError, match="linger of 0"):
            SocketConfig(SocketType.PUSH, "tcp://127.0.0.1:5555", **how)


def test_a_time_longer_than_libzmq_knows_is_the_longest_it_knows():
    """A limit of a month is taken, and is libzmq's longest; one for ever stays that."""
    with ZMQPool() as pool:
        for seconds, milliseconds in ((31 * 86400, 2**31 - 1), (1e308, 2**31 - 1), (float("inf"), -1)):
            config = SocketConfig("PULL", "tcp://127.0.0.1:5555", receive_timeout=seconds, send_timeout=seconds)
            with pool.socket(config) as socket:
                assert milliseconds == socket.get(zmq.RCVTIMEO)
                assert milliseconds == socket.get(zmq.SNDTIMEO)


def test_an_address_of_ipv6_needs_no_option():
    """In brackets it is bound and connected to as it is, and a configuration may still say IPV6=0."""
    try:
        create_server(("::1", 0), family=AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with ZMQPool() as pool:
        with pool.socket(SocketConfig("REP", "tcp://[::1]:*", bind=True, receive_timeout=10)) as server:
            endpoint = server.last_endpoint.decode()
            with pool.socket(SocketConfig("REQ", endpoint)) as client:
                client.send(b"over IPv6")
                assert b"over IPv6" == server.recv()
                server.send(b"welcome")
                assert b"welcome" == client.recv()
            eventually(lambda: pool.health()["endpoints"][endpoint] is True)
        with pytest.raises(ConfigError, match="cannot bind"):
            pool.socket(SocketConfig("REP", "tcp://[::1]:*", bind=True, options={"IPV6": 0})).__enter__()


async def test_what_is_no_configuration_is_refused_by_name():
    """Every call that takes a configuration says what it was given instead."""
    endpoint: Any = "tcp://127.0.0.1:5555"
    async with ZMQPool() as pool:
        with pytest.raises(TypeError, match="a SocketConfig is needed, not str"):
            pool.socket(endpoint)
        for call in (pool.request, pool.publish, pool.push):
            with pytest.raises(TypeError, match="a SocketConfig is needed, not str"):
                call(endpoint, b"x")
        for ask in (pool.request_async, pool.publish_async, pool.push_async):
            with pytest.raises(TypeError, match="a SocketConfig is needed, not str"):
                await ask(endpoint, b"x")
        with pytest.raises(TypeError, match="a SocketConfig is needed, not str"):
            pool.request_many(endpoint, [b"x"])


def test_equal_configurations_are_one_key():
    """However the options are written, equal configurations are equal and hash alike."""
    one = SocketConfig(SocketType.SUB, "tcp://127.0.0.1:1", topics=["a"], options={"rcvhwm": 5, zmq.SNDHWM: True})
    two = SocketConfig("sub", "tcp://127.0.0.1:1", topics=(b"a",), options={"ZMQ_SNDHWM": 1, "RCVHWM": 5})
    assert one == two
    assert hash(one) == hash(two)
    assert one != SocketConfig("sub", "tcp://127.0.0.1:1", topics=(b"a",))


def test_the_longest_path_of_a_unix_socket_is_taken_as_a_whole(tmp_path):
    """A path of 107 bytes works, and the socket is there under its full name."""
    folder = tmp_path / ("f" * (105 - len(str(tmp_path)) - 1))
    folder.mkdir()
    path = folder / "s"
    assert 107 == len(str(path))
    with ZMQPool() as pool:
        with pool.socket(SocketConfig(SocketType.PULL, f"ipc://{path}", bind=True, receive_timeout=10)) as pull:
            pool.push(SocketConfig(SocketType.PUSH, f"ipc://{path}"), b"arrived")
            assert b"arrived" == pull.recv()
            assert path.is_socket()
