"""Headers, methods and tokens that must not become a second line of a request."""

import pytest

from app.pools.errors import ConfigError
from app.pools.http_pool import HTTPConfig, HTTPPool
from tests.pools.http_pool.conftest import Ask
from tests.support.misbehaving import MisbehavingServer

BAD = ["canary\r\nX-Injected: 1", "canary\n", "canary\r", "canary\0", "canary\u00fc", "canary\u2028"]


@pytest.mark.parametrize("value", BAD)
async def test_a_value_that_leaves_its_line_is_refused_unseen(
    ask: Ask, config: HTTPConfig, server: MisbehavingServer, value: str
) -> None:
    """A line end or what is not ASCII in a header or token is an error that names the header and hides the value."""
    configurations = [{"headers": {"X-Key": value}}, {"auth": value}]
    for options in configurations:
        with pytest.raises(ConfigError, match=r"X-Key|Authorization") as caught:
            HTTPConfig(server.url, **options)  # type: ignore[arg-type]
        assert "canary" not in f"{caught.value!s}{caught.value.__context__!r}"
    with pytest.raises(ConfigError, match="X-Key") as caught:
        await ask(config, "GET", "/echo", headers={"X-Key": value})
    assert "canary" not in str(caught.value)
    with pytest.raises(ConfigError, match="Authorization") as caught:
        await ask(HTTPConfig(server.url, auth=lambda: value), "GET", "/echo")
    assert "canary" not in str(caught.value)
    assert server.seen == []


@pytest.mark.parametrize("value", [None, b"canary", ["canary"]])
async def test_a_value_that_is_no_text_is_refused_unseen(ask: Ask, config: HTTPConfig, value: object) -> None:
    """A header is text, or in a configuration a number: None is not sent as 'None', nor bytes as "b'...'"."""
    with pytest.raises(ConfigError, match="X-Key") as caught:
        HTTPConfig(config.base_url, headers={"X-Key": value})  # type: ignore[dict-item]
    assert "canary" not in str(caught.value)
    with pytest.raises(ConfigError, match="X-Key"):
        await ask(config, "GET", "/echo", headers={"X-Key": value})
    numbered = HTTPConfig(config.base_url, headers={"X-Key": 7})  # type: ignore[dict-item]
    assert (await ask(numbered, "GET", "/echo")).json()["headers"]["x-key"] == "7"


async def test_a_url_in_place_of_a_configuration_is_explained(ask: Ask, server: MisbehavingServer) -> None:
    """Whoever gives a URL where a configuration belongs is told what to write."""
    with pytest.raises(TypeError, match="the first argument is an HTTPConfig"):
        await ask(server.url, "GET", "/echo")


@pytest.mark.parametrize("name", ["X Key", "X:Key", "X\r\nKey", "", "Schl\u00fcssel"])
async def test_a_name_that_is_none_is_refused(ask: Ask, config: HTTPConfig, name: str) -> None:
    """A header's name is a token."""
    with pytest.raises(ConfigError, match="is no header's name"):
        HTTPConfig(config.base_url, headers={name: "1"})
    with pytest.raises(ConfigError, match="is no header's name"):
        await ask(config, "GET", "/echo", headers={name: "1"})


@pytest.mark.parametrize("method", ["GET /evil HTTP/1.1\r\nX: y", "", "G ET", "GET\n"])
async def test_a_method_that_is_none_is_refused(
    ask: Ask, config: HTTPConfig, server: MisbehavingServer, method: str
) -> None:
    """A method is a token; one with a hyphen is fine."""
    with pytest.raises(ConfigError, match="is no method"):
        await ask(config, method, "/echo")
    assert server.seen == []
    assert (await ask(config, "M-SEARCH", "/echo")).json()["method"] == "M-SEARCH"


def test_netrc_counts_only_if_asked_for(
    pool: HTTPPool, server: MisbehavingServer, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With trust_env the user's netrc file is what auth is without it: for its host, unless auth is given."""
    netrc = tmp_path_factory.mktemp("home") / "netrc"
    netrc.write_text("machine 127.0.0.1 login alice password pw\n")
    monkeypatch.setenv("NETRC", str(netrc))

    def sent(config: HTTPConfig) -> object:
        with pool.session(config) as session:
            leased = session.get("/echo").json()["headers"].get("authorization")
        direct = pool.request(config, "GET", "/echo").json()["headers"].get("authorization")
        assert direct == leased
        return direct

    assert sent(HTTPConfig(server.url)) is None
    assert sent(HTTPConfig(server.url, trust_env=True)) == "Basic YWxpY2U6cHc="
    assert sent(HTTPConfig(server.url, trust_env=True, auth="t0ken")) == "Bearer t0ken"
