"""Leased requests.Session objects."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from app.pools.errors import CircuitOpen, InvalidURL, PoolTimeout
from app.pools.http_pool import HTTPConfig, HTTPPool
from tests.support.misbehaving import TLS, MisbehavingServer, misbehaving_server
from tests.support.waiting import eventually


def test_a_session_is_a_real_one_for_its_api(pool: HTTPPool, server: MisbehavingServer) -> None:
    """session leases a requests.Session that joins paths and sends the configuration's headers and credentials."""
    config = HTTPConfig(server.url + "/v1", headers={"X-Api-Key": "k"}, auth=("alice", "pw"))
    with pool.session(config) as session:
        assert isinstance(session, requests.Session)
        said = session.get("/things", params={"a": 1}).json()
    assert said["target"] == "/v1/things?a=1"
    assert said["headers"]["x-api-key"] == "k"
    assert said["headers"]["authorization"] == "Basic YWxpY2U6cHc="


def test_leases_share_connections_and_nothing_else(
    pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer
) -> None:
    """The next lease uses the same connection, without the cookies, headers and hooks of the last one."""
    with pool.session(config) as session:
        session.get("/cookie?who=alice")
        assert session.cookies["who"] == "alice"
        session.headers["X-Mine"] = "1"
    with pool.session(config) as session:
        said = session.get("/echo").json()
    assert server.accepted == 1
    assert "cookie" not in said["headers"]
    assert "x-mine" not in said["headers"]


def test_a_session_refuses_other_origins(pool: HTTPPool, config: HTTPConfig) -> None:
    """A session refuses a URL of another origin, which must not see its credentials."""
    with pool.session(config) as session, pytest.raises(InvalidURL, match="make an HTTPConfig"):
        session.get("http://other.example/echo")


def test_a_session_drops_secrets_on_the_way_to_another_origin(pool: HTTPPool, server: MisbehavingServer) -> None:
    """A redirect to another origin carries neither the credentials nor the key of the first one."""
    with misbehaving_server() as other:
        config = HTTPConfig(server.url, headers={"X-Api-Key": "k", "Cookie": "a=b"}, auth="token")
        with pool.session(config) as session:
            headers = session.get("/redirect", params={"to": f"{other.url}/echo"}).json()["headers"]
    assert not {"x-api-key", "authorization", "cookie"} & set(headers)


def test_sessions_verify_by_the_configurations_authority(pool: HTTPPool) -> None:
    """A leased session trusts the configured authority, and no other."""
    with misbehaving_server(tls=True) as server:
        with pool.session(HTTPConfig(server.url, ca=TLS / "ca.pem")) as session:
            assert session.get("/echo").ok
        with pool.session(HTTPConfig(server.url)) as session, pytest.raises(requests.exceptions.SSLError):
            session.get("/echo")
        with pool.session(HTTPConfig(server.url, verify=False)) as session, pytest.warns(match="Unverified HTTPS"):
            assert session.get("/echo").ok


def test_leases_are_bounded(pool: HTTPPool, server: MisbehavingServer) -> None:
    """No more sessions are out than max_connections; who waits too long gets PoolTimeout."""
    config = HTTPConfig(server.url, max_connections=2)
    with pool.session(config), pool.session(config), pytest.raises(PoolTimeout):
        pool.session(config, timeout=0.05).__enter__()
    with ThreadPoolExecutor(8) as threads:

        def ask(i: int) -> str:
            with pool.session(config) as session:
                return str(session.get(f"/echo?i={i}").json()["target"])

        assert list(threads.map(ask, range(40))) == [f"/echo?i={i}" for i in range(40)]
    assert pool.get_stats()["metrics"]["active_connections"] == 0


def test_sessions_keep_the_pools_promises_on_redirects(pool: HTTPPool) -> None:
    """A session's redirect shows the client's certificate to no other origin, and block_private holds."""
    with misbehaving_server(tls=True, client_certificate=True) as server:
        with misbehaving_server(tls=True, client_certificate=True) as other:
            config = HTTPConfig(server.url, ca=TLS / "ca.pem", cert=TLS / "client.pem")
            with pool.session(config) as session:
                assert session.get("/echo").ok
                with pytest.raises(requests.RequestException):
                    session.get("/redirect", params={"to": f"{other.url}/echo"})
            assert other.seen == []
        with pool.session(HTTPConfig(server.url, block_private=True, verify=False)) as session:
            with pytest.raises(requests.ConnectionError, match="is not a public address"):
                session.get("/echo")


def test_a_session_retries_by_the_pools_rules(pool: HTTPPool, server: MisbehavingServer) -> None:
    """A session's GET is sent again after a 503 or a reset, a POST is not, and both are counted."""
    config = HTTPConfig(server.url, retry_delay=0.01, max_retries=2)
    with pool.session(config) as session:
        assert session.get("/status?code=503&n=2").status_code == 200
        assert session.get("/reset?n=1").status_code == 200
        assert session.post("/status?code=503&key=post").status_code == 503
        with pytest.raises(requests.ConnectionError):
            session.post("/reset?key=post")
        assert session.post("/status?code=500&n=1&key=safe", headers={"Idempotency-Key": "7"}).status_code == 200
        assert session.put("/status?code=503&n=1&key=put", data=iter([b"once"])).status_code == 503
    figures = pool.get_stats()["pools"][server.url]
    assert (figures["requests"], figures["attempts"], figures["retries"]) == (6, 10, 4)
    assert figures["new_connections"] == server.accepted
    assert (figures["in_flight"], figures["active"]) == (0, 0)


def test_a_session_follows_the_circuit(pool: HTTPPool, server: MisbehavingServer) -> None:
    """A session's failures open the circuit of its API, and it raises a requests.ConnectionError while it is open."""
    config = HTTPConfig(server.url, circuit_threshold=2, circuit_reset=60.0, max_retries=0)
    with pool.session(config) as session:
        for _ in range(2):
            session.get("/status?code=500")
        with pytest.raises(requests.ConnectionError, match="keeps failing"):
            session.get("/echo")
    with pytest.raises(CircuitOpen):
        pool.request(config, "GET", "/echo")
    assert len(server.seen) == 2


def test_a_refused_connection_is_a_connection_error(pool: HTTPPool, free_port: int) -> None:
    """A session raises what requests raises, after the retries: ConnectionError for a refused connection."""
    config = HTTPConfig(f"http://127.0.0.1:{free_port}", retry_delay=0.01, max_retries=2)
    with pool.session(config) as session, pytest.raises(requests.ConnectionError, match="refused"):
        session.post("/pay", json={})
    assert pool.get_stats()["pools"][config.base_url]["attempts"] == 3


@pytest.mark.parametrize("path", ["/bomb?mb=200", "/endless", "/large?size=2000000"])
def test_a_sessions_body_has_a_limit(pool: HTTPPool, server: MisbehavingServer, path: str) -> None:
    """A bomb, an endless and a large body raise a RequestException above max_response_size."""
    with pool.session(HTTPConfig(server.url, max_response_size=1_000_000)) as session:
        with pytest.raises(requests.RequestException, match="more than 1000000 bytes"):
            session.get(path)
        assert len(session.get("/large?size=1000000").content) == 1_000_000
        assert b"".join(session.get("/large?size=70000", stream=True).iter_content(1000)) == b"a" * 70_000
    assert pool.get_stats()["pools"][server.url]["bytes_received"] > 1_070_000


def test_a_session_sends_a_fetched_token_and_renews_it(pool: HTTPPool, server: MisbehavingServer) -> None:
    """A token from a function is sent, renewed once after a 401, and not sent to another origin."""
    tokens = iter(["old", "new"])
    config = HTTPConfig(server.url, auth=lambda: next(tokens))
    with misbehaving_server() as other, pool.session(config) as session:
        assert session.get("/token?right=new").status_code == 200
        assert session.get("/token?right=new").status_code == 200
        headers = session.get("/redirect", params={"to": f"{other.url}/echo"}).json()["headers"]
    assert "authorization" not in headers


def test_a_session_keeps_rate_and_concurrency(pool: HTTPPool, server: MisbehavingServer) -> None:
    """rate_limit and max_concurrency bound a session's requests too."""
    config = HTTPConfig(server.url, rate_limit=0.1, max_concurrency=1, timeout=2.0)
    with pool.session(config) as session:
        assert session.get("/echo").ok
        with pytest.raises(requests.Timeout, match="rate_limit"):
            session.get("/echo")
    free = HTTPConfig(server.url, max_concurrency=1, timeout=0.2)
    with pool.stream(free, "GET", "/events?n=1&then=hang"), pool.session(free) as session:
        with pytest.raises(requests.RequestException):
            session.get("/echo")
    with pool.session(free) as session:
        assert session.get("/echo").ok


def test_a_lease_ends_what_was_not_read(pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer) -> None:
    """A streamed response that is left unread is closed with its lease; one that was read keeps its connection."""
    with pool.session(config) as session:
        assert session.get("/echo").ok
        unread = session.get("/events?n=1&then=hang", stream=True)
        session.get("/large?size=3000000", stream=True)
    eventually(lambda: server.connected <= 1)
    assert unread.raw.closed
    with pool.session(config) as session:
        assert session.get("/echo").ok
    assert pool.get_stats()["metrics"]["active_connections"] == 0
