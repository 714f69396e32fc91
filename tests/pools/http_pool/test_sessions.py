"""Leased requests.Session objects."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from app.pools.errors import InvalidURL, PoolTimeout
from app.pools.http_pool import HTTPConfig, HTTPPool
from tests.support.misbehaving import TLS, MisbehavingServer, misbehaving_server


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
